"""The contents of Flower messages, and how they are validated. All record keys are named here.

    train     ->  ConfigRecord "round"     {round, base}
              <-  ArrayRecord  "concept"   one array "file": the concept file's bytes
                  MetricRecord "numbers"   {seconds, bytes, digest}, and own: 1 if own changes
                                           may be published; digest is the file's first digits
    evaluate  ->  ConfigRecord "round"     {round, base, candidate, candidate_digest}
              <-  MetricRecord "identity"  {class_word, single, fused, ceiling}

A concept file travels as it is on disk, in one array of bytes, cut into pieces for slow lines, and
a reader interprets nothing before it is checked. Readers raise ConceptError for an invalid message
of a participant and TrustError for one of the server.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message import array as flower_array

from mos_common.errors import ConceptError, MosError, TrustError
from mos_common.identity_scores import Identity
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST, PIECE_BYTES, EvaluateRequest, TrainRequest

# Flower reads it from the environment when it is imported, which others may do before us.
flower_array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE = PIECE_BYTES

ROUND, CONCEPT, FILE, NUMBERS, IDENTITY = "round", "concept", "file", "numbers", "identity"
R = TypeVar("R", TrainRequest, EvaluateRequest)


@dataclass(frozen=True)
class Upload:
    """A concept file as it arrived, unread, and how long it took to make.

    `own`: the participant agrees that its own changes are published beside the fused model.
    """

    data: bytes
    seconds: float
    own: bool = False


def train_content(request: TrainRequest) -> RecordDict:
    """Return the records of a train request."""
    return RecordDict({ROUND: ConfigRecord(dict(vars(request)))})


def evaluate_content(request: EvaluateRequest) -> RecordDict:
    """Return the records of an evaluate request."""
    return RecordDict({ROUND: ConfigRecord(dict(vars(request)))})


def upload_content(upload: Upload) -> RecordDict:
    """Return the records that answer a train request."""
    size = len(upload.data)
    # Flower keeps equal objects once, and loses the second of two that come at the same moment.
    digest = int.from_bytes(hashlib.sha256(upload.data).digest()[:6])
    array = Array(dtype="uint8", shape=(size,), stype="numpy.ndarray", data=array_header(size) + upload.data)
    numbers = MetricRecord({"seconds": float(upload.seconds), "bytes": size, "digest": digest})
    if upload.own:
        numbers["own"] = 1
    return RecordDict({CONCEPT: ArrayRecord({FILE: array}), NUMBERS: numbers})


def identity_content(identity: Identity) -> RecordDict:
    """Return the records that answer an evaluate request: four numbers and nothing else."""
    return RecordDict({IDENTITY: MetricRecord(asdict(identity))})


def read_train(content: RecordDict) -> TrainRequest:
    """Read the train request that a server sent."""
    return _request(content, TrainRequest)


def read_evaluate(content: RecordDict) -> EvaluateRequest:
    """Read the evaluate request that a server sent."""
    return _request(content, EvaluateRequest)


def read_upload(content: RecordDict) -> Upload:
    """Return the bytes of the concept file that a participant sent, without interpreting them.

    `Array.numpy()` is never called: it does not check the declared dtype, and a header may ask for
    terabytes.
    """
    wrong = _complain("the upload", ConceptError)
    if set(content) != {CONCEPT, NUMBERS}:
        raise wrong(f"has the records {sorted(content)}: expected {sorted({CONCEPT, NUMBERS})}")
    arrays, numbers = content[CONCEPT], content[NUMBERS]
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [FILE]:
        raise wrong(f"must hold exactly one array called {FILE!r}")
    array = arrays[FILE]
    if array.stype != "numpy.ndarray" or array.dtype != "uint8" or len(array.shape) != 1:
        raise wrong(f"is {array.stype} {array.dtype} of shape {array.shape}: expected a row of uint8 bytes")
    size = array.shape[0]
    if not 0 < size <= CONCEPT_BYTES_AT_MOST:
        raise wrong(f"claims {size} bytes: a concept file has at most {CONCEPT_BYTES_AT_MOST}")
    header = array_header(size)
    if len(array.data) != len(header) + size or not array.data.startswith(header):
        raise wrong(f"carries {len(array.data)} bytes that are not a header and the {size} bytes it claims")
    seconds = numbers.get("seconds") if isinstance(numbers, MetricRecord) else None
    if not isinstance(seconds, float) or not math.isfinite(seconds) or seconds < 0:
        raise wrong("does not say in how many seconds it was made")
    own = numbers.get("own", 0) if isinstance(numbers, MetricRecord) else 0
    if type(own) is not int or own not in (0, 1):
        raise wrong("says neither 0 nor 1 to whether its own changes may be published")
    return Upload(data=bytes(memoryview(array.data)[len(header) :]), seconds=seconds, own=own == 1)


def read_identity(content: RecordDict) -> Identity:
    """Read the identity numbers that a participant sent, each a finite cosine."""
    wrong = _complain("the evaluation", ConceptError)
    if set(content) != {IDENTITY} or not isinstance(record := content[IDENTITY], MetricRecord):
        raise wrong(f"has the records {sorted(content)}: expected [{IDENTITY!r}]")
    names = {field.name for field in fields(Identity)}
    if set(record) != names or not all(isinstance(value, float | int) for value in record.values()):
        raise wrong(f"has the numbers {sorted(record)}: expected {sorted(names)}")
    return Identity(**{name: float(value) for name, value in record.items()})


def array_header(size: int) -> bytes:
    """Return the 128 bytes that numpy's format (version 1.0) puts before a row of `size` bytes."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode("latin1") + b"\n"


def _request(content: RecordDict, kind: type[R]) -> R:
    """Return a request that has every field of its class, each of its type, and no other."""
    wrong = _complain("the server's request", TrustError)
    if set(content) != {ROUND} or not isinstance(record := content[ROUND], ConfigRecord):
        raise wrong(f"has the records {sorted(content)}: expected [{ROUND!r}]")
    expected = get_type_hints(kind)
    if {name: type(value) for name, value in record.items()} != expected:
        described = ", ".join(f"{name} ({of.__name__})" for name, of in sorted(expected.items()))
        raise wrong(f"has the entries {sorted(record)}: expected {described}")
    values: dict[str, Any] = dict(record)
    return kind(**values)


def _complain(about: str, error: type[MosError]) -> Callable[[str], MosError]:
    return lambda what: error(f"{about} {what}")
