"""What the page shows of one model: identity, influence, drift, and its contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mos_common.errors import StateError
from mos_common.identity_scores import Identity
from mos_server.models.sheet import COLUMNS, Sheet, model_folder, sheet_of
from mos_server.page.federation import Federation
from mos_server.state.records import PUBLISHED, Round, Upload

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class Shown:
    """One concept of a model: scores, energy kept by group, who takes most, and its pictures.

    `taken_by` is who takes most of it, what it keeps with them and without (shares of its energy).
    """

    token: str
    author: str
    licence: str
    weight: float
    flagged: bool
    withdrawn: bool
    identity: Identity | None
    kept: Mapping[str, float]
    taken_by: tuple[str, float, float] | None
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class ModelView:
    """A model as the page shows it."""

    folder: Path
    candidate: bool
    method: str
    groups: Sequence[str]
    drift: Mapping[str, float]
    concepts: Sequence[Shown]
    excluded: Sequence[tuple[str, str]]
    columns: Sequence[str]
    drawn: int
    missing: int


def model_view(federation: Federation, round_: Round) -> ModelView | str:
    """Return what is shown of a round's model, or why there is nothing to show."""
    try:
        folder = model_folder(federation.state, federation.journal, round_)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return _view(federation, round_, folder, manifest)
    except StateError as error:
        return str(error)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"the manifest of {round_.id} cannot be read ({error}): restore it from a backup"


def picture(federation: Federation, round_id: str, digest: str, column: str) -> Path | None:
    """Return the file of a picture of a round's contact sheet, if it is drawn."""
    round_ = federation.journal.rounds.get(round_id)
    view = model_view(federation, round_)
    if isinstance(view, str) or column not in COLUMNS:
        return None
    manifest = json.loads((view.folder / "manifest.json").read_bytes())
    if digest not in {each["digest"] for each in manifest["concepts"]}:
        return None
    file = sheet_of(federation.state, round_id, manifest["files"][ADAPTER]["sha256"]).picture(digest, column)
    return file if file.is_file() else None


def _view(federation: Federation, round_: Round, folder: Path, manifest: dict[str, Any]) -> ModelView:
    uploads = {upload.token: upload for upload in federation.journal.uploads.admitted(round_.id)}
    sheet = sheet_of(federation.state, round_.id, manifest["files"][ADAPTER]["sha256"])
    there = {file.name for file in sheet.folder.glob("*.webp")}
    tokens = [each["token"] for each in manifest["concepts"]]
    taken = _taken(tokens, manifest.get("influence", {}))
    concepts = [
        _shown(each, uploads.get(each["token"]), taken.get(each["token"]), sheet, there, round_)
        for each in manifest["concepts"]
    ]
    columns = [each for each in COLUMNS if each != "own" or any(one.get("own") for one in manifest["concepts"])]
    wanted = [
        (concept, column)
        for concept, described in zip(concepts, manifest["concepts"], strict=True)
        for column in columns
        if not concept.withdrawn and (column != "own" or described.get("own"))
    ]
    drawn = sum(column in concept.pictures for concept, column in wanted)
    return ModelView(
        folder=folder,
        candidate=round_.status != PUBLISHED,
        method=str(manifest["method"]),
        groups=sorted({group for each in concepts for group in each.kept}),
        drift={str(group): float(value) for group, value in manifest.get("drift", {}).items()},
        concepts=concepts,
        excluded=[(str(each["token"]), str(each["reason"])) for each in manifest.get("excluded", [])],
        columns=columns,
        drawn=drawn,
        missing=len(wanted) - drawn,
    )


def _shown(
    described: dict[str, Any],
    upload: Upload | None,
    taken_by: tuple[str, float, float] | None,
    sheet: Sheet,
    there: set[str],
    round_: Round,
) -> Shown:
    digest = str(described["digest"])
    scores = described.get("identity")
    identity = upload.identity if upload is not None else Identity(**scores) if scores else None
    loss = None if identity is None else identity.loss
    files = {column: sheet.picture(digest, column).name for column in COLUMNS}
    return Shown(
        token=str(described["token"]),
        author=str(described["author"]),
        licence=str(described["licence"]),
        weight=float(described["weight"]),
        flagged=bool(described.get("flagged")) or (loss is not None and loss > round_.settings.flag_loss),
        withdrawn=upload is None,
        identity=identity,
        kept={str(group): float(each["energy_kept"]) for group, each in described["survival"].items()},
        taken_by=taken_by,
        pictures={
            column: f"/rounds/{round_.id}/pictures/{digest}/{column}" for column, name in files.items() if name in there
        },
    )


def _taken(tokens: Sequence[str], influence: Mapping[str, Any]) -> dict[str, tuple[str, float, float]]:
    """Return, for each concept, who takes most of it in any group of layers.

    Row j of a group's table is the energy that each keeps without concept j; on the diagonal, with
    all of them.
    """
    worst: dict[str, tuple[float, str, float, float]] = {}
    for table in influence.values():
        for j, without in enumerate(table):
            for i, kept_without in enumerate(without):
                kept = table[i][i]
                if i != j and kept_without > 0:
                    share = kept / kept_without
                    if tokens[i] not in worst or share < worst[tokens[i]][0]:
                        worst[tokens[i]] = (share, tokens[j], kept, kept_without)
    return {token: (other, kept, without) for token, (_, other, kept, without) in worst.items()}
