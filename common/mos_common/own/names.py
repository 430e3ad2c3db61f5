"""Where own changes lie, and by which name they are fetched: no library is needed to know that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mos_common.names import TOKEN

Publishes = Literal["fused", "own"]
"""What a federation hands out: the fused model alone, or own changes of those who agree too."""

SUFFIX = ".own"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = r"[a-z0-9][a-z0-9_-]*"
_FETCHED = re.compile(rf"(?P<round>round-\d{{3,9}})\.own\.(?P<participant>{_NAME})\.(?P<concept>{_NAME})")


class OwnName(NamedTuple):
    """The round and the concept whose own changes are meant."""

    round: str
    token: str

    def __str__(self) -> str:
        """Return the name that `mos.v1` knows them by."""
        return f"{self.round}.own.{folder_name(self.token)}"


def own_name(text: str) -> OwnName | None:
    """Return whose own changes a name of `mos.v1` means, or None if it is no such name."""
    found = _FETCHED.fullmatch(text)
    return OwnName(found["round"], f"<{found['participant']}/{found['concept']}>") if found else None


def own_digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of own changes that a fused model's manifest names, by token.

    What has not the form of a concept's name or of a digest is left out.
    """
    concepts = manifest.get("concepts")
    entries = [each for each in concepts if isinstance(each, dict)] if isinstance(concepts, list) else []
    pairs = [(each.get("token"), each.get("own")) for each in entries]
    return {
        token: own
        for token, own in pairs
        if isinstance(token, str) and TOKEN.fullmatch(token) and isinstance(own, str) and _DIGEST.fullmatch(own)
    }


def folder_name(token: str) -> str:
    """Return the name of the folder of a concept's own changes: `alice.cat` for `<alice/cat>`."""
    return token[1:-1].replace("/", ".")


def own_folder(model: Path, token: str) -> Path:
    """Return where the own changes of a concept of `model` lie, if they are there."""
    return beside(model) / folder_name(token)


def beside(model: Path) -> Path:
    """Return the folder in which the own changes of a model's concepts lie."""
    model = model.resolve()
    return model.with_name(model.name + SUFFIX)
