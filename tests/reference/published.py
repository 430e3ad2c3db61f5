"""A published model in a participant's state folder, with the kit that names who signed it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.fused_model import NamedConcept
from mos_common.kit import Kit, write_kit
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.models.publish import publish_candidate, write_fused
from mos_server.state.pki import create_pki

KEYS = {
    "model.sig": lambda: ec.generate_private_key(ec.SECP256R1()),
    "manifest.sig": ed25519.Ed25519PrivateKey.generate,
}


def pem(key) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass
class Published:
    """A participant's state folder with a published model and a kit, which each test may spoil."""

    state: Path
    key: object
    signature: str

    @property
    def model(self) -> Path:
        return self.state / "models" / "round-001"

    @property
    def kit(self) -> Path:
        return self.state / "kit.json"


def new_candidate(base: Any, make_concept: Callable[..., Any], folder: Path) -> Path:
    """Fuse two concepts into the candidate of round-001."""
    concepts = [
        NamedConcept("alice", make_concept(base, "<cat>", seed=1, author="Alice", licence="CC0")),
        NamedConcept("bob", make_concept(base, "<dog>", seed=2, rank=3)),
    ]
    candidate = folder / "round-001-candidate"
    write_fused(fuse(base, concepts, AverageSettings()), candidate, round="round-001")
    return candidate


def new_published(candidate: Path, state: Path, signature: str) -> Published:
    made = Published(state, KEYS[signature](), signature)
    publish_candidate(candidate, made.model, {}, (), made.key)
    write_kit(kit_of(pem(made.key), state.parent / "pki"), made.kit)
    return made


def kit_of(signing_key: str, pki: Path) -> Kit:
    return Kit(
        server_id="ab" * 16,
        name="alice",
        fleet="127.0.0.1:9092",
        mos="127.0.0.1:9093",
        ca=create_pki(pki, "127.0.0.1").authority_pem(),
        token="t" * 32,
        expires=dt.datetime.now(dt.UTC),
        base="ab" * 32,
        base_name="tiny",
        signing_key=signing_key,
    )


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
