"""The words by which a LoRA is called, as its own file tells them.

`modelspec.trigger_phrase` names them. Without it, kohya's record of its training captions,
`ss_tag_frequency`, shows them: what stands in every caption, the name of the training folder
(`10_ohwx dog`) first of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mos_common.errors import ConceptError
from mos_common.names import is_ordinary_text
from mos_common.texts import problem_with

PHRASE, FREQUENCIES = "modelspec.trigger_phrase", "ss_tag_frequency"
FOLDERS, OF_THE_CLASS = "ss_dataset_dirs", "ss_reg_dataset_dirs"
REPEATS = re.compile(r"\d+_")
MAX_LENGTH = 200


@dataclass(frozen=True)
class Told:
    """Phrases by which a file says it is called, any one of them, and the key that says so."""

    phrases: tuple[str, ...]
    source: str

    def agrees(self, trigger: str) -> bool:
        """Return whether a trigger is, or holds, one of the phrases."""
        parts = [part for phrase in self.phrases for part in (phrase, *phrase.split(","))]
        return any(_holds(trigger, part) for part in parts)


def choose_trigger(metadata: Mapping[str, str], given: str) -> tuple[str, str]:
    """Return the trigger, and how it was found, for the report; both empty if there is none.

    Raises:
        ConceptError: the file names another than `given`, or several, or one that cannot be used.

    """
    told = told_by(metadata)
    if told is None:
        return given, "as you say" if given else ""
    named = " or ".join(map(repr, told.phrases))
    if given:
        if not told.agrees(given):
            raise ConceptError(
                f"you call it {given!r}, and the file itself says {named} ({told.source}): give the right one with "
                "--trigger, and --trigger-anyway if it is yours"
            )
        return given, "as you say"
    if len(told.phrases) > 1:
        raise ConceptError(
            f"the file does not say which of its words is the trigger, {named} ({told.source}): choose with --trigger"
        )
    phrase = told.phrases[0]
    if not is_ordinary_text(phrase) or len(phrase) > MAX_LENGTH or problem_with(phrase):
        raise ConceptError(
            f"the file's trigger, {phrase[:60]!r} ({told.source}), is not ordinary words: give the file of "
            "that embedding too, or words with --trigger"
        )
    return phrase, f"from the file's {told.source}"


def told_by(metadata: Mapping[str, str]) -> Told | None:
    """Return what a file says of its trigger; None if it says nothing."""
    if phrase := metadata.get(PHRASE, "").strip().strip(","):
        return Told((phrase,), PHRASE)
    phrases = _in_every_caption(metadata)
    return Told(phrases, FREQUENCIES) if phrases else None


def _in_every_caption(metadata: Mapping[str, str]) -> tuple[str, ...]:
    folders = {name: _counts(tags) for name, tags in _mapping(metadata.get(FREQUENCIES)).items()}
    of_folders, of_the_class = _mapping(metadata.get(FOLDERS)), _mapping(metadata.get(OF_THE_CLASS))
    found: list[str] = []
    for folder, counts in folders.items():
        if not counts or folder in of_the_class:
            continue
        described = of_folders.get(folder)
        pictures = described.get("img_count") if isinstance(described, Mapping) else None
        every = pictures if isinstance(pictures, int) and pictures > 0 else max(counts.values())
        found += _of_folder(folder, counts, every)
    return tuple(dict.fromkeys(found))


def _of_folder(folder: str, counts: Mapping[str, int], every: int) -> list[str]:
    """Return the folder's own name if every caption has it, or else the tags that every one has."""
    name = REPEATS.sub("", folder, count=1).strip()
    if sum(count for tag, count in counts.items() if _holds(tag, name)) >= every:
        return [next((tag for tag in counts if _plain(tag) == _plain(name)), name)]
    tags = [tag for tag, count in counts.items() if count >= every]
    # One caption for each picture, all different, tells nothing.
    return tags if every > 1 or len(counts) == 1 else []


def _counts(tags: object) -> dict[str, int]:
    held = tags.items() if isinstance(tags, Mapping) else ()
    return {" ".join(tag.split()): count for tag, count in held if isinstance(count, int) and _plain(tag)}


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        read = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _holds(text: str, phrase: str) -> bool:
    """Return whether a text holds a phrase, as words of its own."""
    phrase = _plain(phrase)
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())
