"""What says whom to trust and how a model was made: pins, statements, signatures, settings."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from google.protobuf.message import DecodeError

from fuzz.files import fused_model
from fuzz.reader import Reader, miniature
from mos_client.federation.session import Session
from mos_client.tuning.request import TuneRequest
from mos_common import mos_pb2
from mos_common.errors import TrustError
from mos_common.rotation import Anchors, public_pem, read_history, read_statements
from mos_common.signing import sign_model, verify_model
from mos_common.trust import TRUST, Pins, read_pins, write_pins
from mos_server.fusion.settings import FusionSettings

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
AUTHORITY = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


def _rotated() -> tuple[Anchors, Anchors]:
    """Return anchors, and those after two rotations."""
    first, second = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    pinned = Anchors("ab" * 16, AUTHORITY, public_pem(first))
    later = pinned
    for by, to in ((first, second), (second, second)):
        later = later.rotated(
            by, authority=AUTHORITY, signing_key=public_pem(to), fleet="a.org:9092", mos="a.org:9093", time=NOW
        )
    return pinned, later


def statements(_folder: Path) -> Reader:
    """A server's answer to `Trust`: rotation statements, which must go on from what is pinned."""
    pinned, later = _rotated()
    seed = mos_pb2.TrustReply(statements=[each.to_bytes() for each in later.statements]).SerializeToString()

    def read(file: Path) -> object:
        reply = mos_pb2.TrustReply.FromString(file.read_bytes())
        return pinned.extended(read_statements(list(reply.statements)))

    return Reader("reply", (seed,), read, (TrustError, DecodeError))  # gRPC makes a status of the second


def statement(_folder: Path) -> Reader:
    """One rotation statement: its JSON, its numbers, its keys and its signature."""
    pinned, later = _rotated()
    seed = later.statements[0].to_bytes()
    return Reader("statement.json", (seed,), lambda file: pinned.extended(read_statements([file.read_bytes()])))


def history(_folder: Path) -> Reader:
    """An operator's list of statements."""
    seed = json.dumps([json.loads(each.to_bytes()) for each in _rotated()[1].statements]).encode()
    return Reader("rotations.json", (seed,), lambda file: read_history(file.read_bytes()))


def pins(folder: Path) -> Reader:
    """What a participant's folder pinned."""
    seeds = []
    for anchors in _rotated():
        write_pins(Pins("alice", anchors), folder)
        seeds.append((folder / TRUST).read_bytes())
    return Reader(TRUST, tuple(seeds), lambda file: read_pins(file.parent))


def bundle(folder: Path) -> Reader:
    """The signature beside a model, in the form of OpenSSF."""
    return _signature(folder, "model.sig", ec.generate_private_key(ec.SECP256R1()))


def old_signature(folder: Path) -> Reader:
    """The signature beside a model of a federation of release 0.1.0."""
    return _signature(folder, "manifest.sig", ed25519.Ed25519PrivateKey.generate())


def _signature(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Reader:
    model = folder / "signed"
    fused_model(miniature(folder), model)
    sign_model(model, key)
    seed = (model / name).read_bytes()

    def read(file: Path) -> object:
        (model / name).write_bytes(file.read_bytes())
        return verify_model(model, public_pem(key))

    return Reader(name, (seed,), read, TrustError)


def session(folder: Path) -> Reader:
    """The settings of a participant's folder, which the ClientApp reads at each question."""
    request = TuneRequest(images=folder, concept="<cat>", class_word="cat", base="tiny")
    Session(folder, "ab" * 32, request).save()
    seed = (folder / "settings.json").read_bytes()
    return Reader("settings.json", (seed,), lambda file: Session.load(file.parent))


def fusion_settings(_folder: Path) -> Reader:
    """The settings of a round, as the journal keeps them."""
    values = {"settings": {"ridge": 0.5}, "weights": {"<alice/cat>": 2.0}, "keep_all": True, "workers": "2"}
    seeds = tuple(json.dumps(each).encode() for each in (values, {"method": "ties", "settings": {}, "weights": {}}, {}))
    return Reader("settings.json", seeds, _fusion_settings)


def _fusion_settings(file: Path) -> object:
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # the database of the journal has JSON
        raise TrustError(str(error)) from error
    if not isinstance(values, dict):
        raise TrustError("not an object")
    return FusionSettings.from_json(values)


MAKERS: Mapping[str, Callable[[Path], Reader]] = {
    "statements": statements,
    "statement": statement,
    "history": history,
    "pins": pins,
    "bundle": bundle,
    "old_signature": old_signature,
    "session": session,
    "fusion_settings": fusion_settings,
}
