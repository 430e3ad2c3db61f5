"""The contents of messages: what one side writes the other reads, and nothing else is read."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from mos_common import messages
from mos_common.errors import ConceptError, TrustError
from mos_common.round_requests import (
    CONCEPT_BYTES_AT_MOST,
    OBJECTS_AT_MOST,
    PIECE_BYTES,
    EvaluateRequest,
    TrainRequest,
)

TRAIN = TrainRequest(round="round-001", base="ab" * 32)
EVALUATE = EvaluateRequest(
    round="round-001", base="ab" * 32, candidate="round-001-candidate", candidate_digest="cd" * 32
)
# Each request with the functions that write and read it.
REQUESTS = [
    (TRAIN, messages.train_content, messages.read_train),
    (EVALUATE, messages.evaluate_content, messages.read_evaluate),
]
FIELDS = [(*each, field.name) for each in REQUESTS for field in fields(each[0])]
UPLOAD = messages.Upload(b"a concept file", 1.5)


def round_record(**values: object) -> RecordDict:
    return RecordDict({messages.ROUND: ConfigRecord(values)})


def upload_with(**numbers: object) -> RecordDict:
    """The records of an upload, with other numbers; None leaves one out."""
    content = messages.upload_content(UPLOAD)
    values = {**dict(content[messages.NUMBERS]), **numbers}
    record = MetricRecord({name: value for name, value in values.items() if value is not None})
    return RecordDict({messages.CONCEPT: content[messages.CONCEPT], messages.NUMBERS: record})


def test_two_uploads_share_no_object():
    """Flower keeps equal objects once, and loses the second of two that come at the same moment."""
    one, other = (
        get_all_nested_objects(messages.upload_content(messages.Upload(data, 0.0)))
        for data in (b"alice's concept", b"bob's concept..")
    )
    assert len(one) == 5
    assert one.keys().isdisjoint(other)


def test_an_upload_is_cut_into_pieces_that_a_slow_line_carries_in_time():
    """Two at a time at 16 kB/s, before Flower forgets an upload of which nothing comes."""
    content = messages.upload_content(messages.Upload(bytes(3 << 20) + b"the end", 1.0))
    array = content[messages.CONCEPT][messages.FILE]
    pieces = [len(piece.data) for _, piece in array.slice_array()]
    assert max(pieces) == PIECE_BYTES
    assert len(pieces) == 7
    assert 2 * PIECE_BYTES / 16_000 < OBJECT_PUSH_SESSION_TTL_SECONDS
    assert -(-CONCEPT_BYTES_AT_MOST // PIECE_BYTES) + 6 <= OBJECTS_AT_MOST, "header, array, records, message"


@pytest.mark.parametrize(("request_", "write", "read"), REQUESTS)
def test_a_request_is_read_as_it_was_written(request_, write, read):
    assert read(write(request_)) == request_


@pytest.mark.parametrize(("request_", "write", "read", "name"), FIELDS)
@pytest.mark.parametrize(
    "value", [None, b"bytes", ["round-001"], True, float("nan"), "", "x" * 1000, "../up"], ids=repr
)
def test_a_request_without_a_field_or_with_another_value_is_refused(request_, write, read, name, value):
    values = {**asdict(request_), name: value}
    if value is None:
        del values[name]
    with pytest.raises(TrustError, match=r"the server's request (has|carries)"):
        read(round_record(**values))


@pytest.mark.parametrize(("request_", "write", "read"), REQUESTS)
def test_a_request_with_an_entry_of_another_release_is_refused(request_, write, read):
    with pytest.raises(TrustError, match=r"has the entries .*'more'.*expected base \(str\)"):
        read(round_record(**asdict(request_), more="text"))
    with pytest.raises(TrustError, match="has the records"):
        read(RecordDict({}))


def test_an_upload_is_read_as_it_was_written():
    assert messages.read_upload(messages.upload_content(UPLOAD)) == UPLOAD


@pytest.mark.parametrize("seconds", [None, -1.0, float("nan"), float("inf"), 3, [1.0]], ids=repr)
def test_an_upload_says_in_how_many_seconds_it_was_made(seconds):
    with pytest.raises(ConceptError, match="does not say in how many seconds it was made"):
        messages.read_upload(upload_with(seconds=seconds))


def test_an_upload_may_have_numbers_of_a_later_release():
    assert messages.read_upload(upload_with(later=1.0)) == UPLOAD


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array("uint8", (10**12,), "numpy.ndarray", b""), "claims 1000000000000 bytes"),
        (Array("uint8", (0,), "numpy.ndarray", b""), "claims 0 bytes"),
        (Array("float32", (3,), "numpy.ndarray", b"abc"), "expected a row of uint8 bytes"),
        (Array("uint8", (3,), "pickle", b"abc"), "expected a row of uint8 bytes"),
        (Array("uint8", (3,), "numpy.ndarray", messages.array_header(3) + b"abcd"), "carries 132 bytes"),
    ],
    ids=["too large", "empty", "another type", "another format", "longer than it claims"],
)
def test_an_upload_that_is_no_row_of_bytes_is_refused(array, reason):
    content = messages.upload_content(UPLOAD)
    content[messages.CONCEPT] = ArrayRecord({messages.FILE: array})
    with pytest.raises(ConceptError, match=reason):
        messages.read_upload(content)


def test_a_yes_to_own_changes_travels_with_the_upload_and_its_absence_is_a_no():
    agreed = messages.Upload(b"a concept file", 1.5, own=True)
    assert messages.read_upload(messages.upload_content(agreed)) == agreed
    assert "own" not in messages.upload_content(UPLOAD)[messages.NUMBERS]
    assert not messages.read_upload(messages.upload_content(UPLOAD)).own


@pytest.mark.parametrize("value", [2, -1, 1.0])
def test_an_answer_that_is_neither_yes_nor_no_is_refused(value):
    with pytest.raises(ConceptError, match="says neither 0 nor 1 to whether its own changes may be published"):
        messages.read_upload(upload_with(own=value))
