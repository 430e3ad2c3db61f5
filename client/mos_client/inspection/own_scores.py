"""What a verified model's manifest says of one's own concept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mos_common.errors import MosError
from mos_common.model_files import parse_manifest, read_manifest


def concepts_in(model: Path) -> list[dict[str, Any]]:
    """Return the concepts that a verified model's manifest names; none if it cannot be read."""
    try:
        concepts = parse_manifest(model, read_manifest(model)).get("concepts")
    except MosError:
        return []
    return [each for each in concepts if isinstance(each, dict)] if isinstance(concepts, list) else []


def scores_in(model: Path, token: str) -> dict[str, float] | None:
    """Return the four identity scores of a concept, if it is in the model and was scored."""
    mine = next((each for each in concepts_in(model) if each.get("token") == token), None)
    identity = mine.get("identity") if mine else None
    return identity if isinstance(identity, dict) else None
