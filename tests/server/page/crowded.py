"""A state folder of 64 participants and 100 published models, for sizes and times of the page."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import insert

from mos_common.identity_scores import Identity
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.journal.tables import members, notes, participants, rounds, uploads
from mos_server.state.records import PUBLISHED, RoundSettings

PARTICIPANTS, MODELS = 64, 100
GROUPS = ("cross", "spatial", "text")
_LAYERS = 16


def crowded_state(folder: Path) -> tuple[State, Journal]:
    """Make the folder: every participant is in every model; every round has a log."""
    state = create_state(folder / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    journal = Journal(state.database)
    names = [f"person-{number:02d}" for number in range(PARTICIPANTS)]
    now, scores = time.time(), asdict(Identity(class_word=0.1, single=0.7, fused=0.65, ceiling=0.9))
    with journal._database.writing() as db:
        for name in names:
            db.execute(insert(participants).values(key=_digest(name), name=name, pem=b"", admitted=now, seen=now))
        for number in range(1, MODELS + 1):
            round_id = f"round-{number:03d}"
            manifest = _write_model(state, round_id, names)
            settings = asdict(RoundSettings())
            asked = now - 3600 * (MODELS - number + 1)
            values = {"id": round_id, "settings": settings, "asked": asked, "ended": asked + 600, "manifest": manifest}
            db.execute(insert(rounds).values(status=PUBLISHED, **values))
            sent = [
                {
                    **{"round": round_id, "key": _digest(name), "participant": name, "concept": "<face>"},
                    **{"digest": _digest(round_id + name), "bytes": 160_000, "received": asked, "identity": scores},
                }
                for name in names
            ]
            db.execute(insert(uploads), sent)
            db.execute(
                insert(members),
                [{"round": round_id, "key": _digest(name), "activity": "scored", "at": asked} for name in names],
            )
            lines = [{"round": round_id, "at": asked, "text": f"<{name}/face> arrived, 0.16 MB"} for name in names]
            db.execute(insert(notes), lines)
    return state, journal


def _write_model(state: State, round_id: str, names: list[str]) -> str:
    """Write the manifest of a model, of the usual length; return its digest."""
    survival = {
        group: {
            "energy_kept": 0.8,
            "residual": {f"{group}.layers.{layer}.attention": 0.0123 for layer in range(_LAYERS)},
        }
        for group in GROUPS
    }
    concepts = [
        {
            **{"token": f"<{name}/face>", "digest": _digest(round_id + name), "author": name, "licence": "CC BY 4.0"},
            **{"weight": 1.0, "survival": survival, "flagged": False},
        }
        for name in names
    ]
    influence = {
        group: [[0.8 + 0.001 * (i == j) for i in range(len(names))] for j in range(len(names))] for group in GROUPS
    }
    manifest = {
        **{"round": round_id, "method": "gradient", "concepts": concepts, "influence": influence},
        **{"drift": dict.fromkeys(GROUPS, 0.01), "files": {"adapter.safetensors": {"size": 1, "sha256": "cd" * 32}}},
    }
    folder = state.artefacts.model(round_id)
    folder.mkdir()
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
