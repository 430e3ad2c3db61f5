"""The memory of a state folder: the concept it is for, and the pictures that were tuned on.

`pictures.json` has the digest of every file of the pictures. With it a concept that was tuned is
found, and sent, when the folder of pictures cannot be read any more: a stick that was pulled out, a
network drive that is away. Only scores need the pictures themselves.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mos_client.pictures.folder import Picture, pictures_digest
from mos_client.tuning.request import TuneRequest
from mos_common.digests import digest_of_file
from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json, write_atomically

log = logging.getLogger(__name__)
PICTURES = "pictures.json"


@dataclass(frozen=True)
class Seen:
    """The pictures of a folder, as they were when they were last read whole.

    `files` has the digests of each picture, its captions and its mask ("" without one), by name.
    """

    folder: str
    digest: str
    files: dict[str, tuple[str, str, str]]

    def misses_from(self, now: Seen) -> list[str]:
        """Return what is gone from the folder, or nothing if anything in it is new or changed."""
        if not set(now.files) <= set(self.files):
            return []
        gone = sorted(set(self.files) - set(now.files))
        for name, there in now.files.items():
            for kind, before, after in zip(("", "captions of ", "mask of "), self.files[name], there, strict=True):
                if before and not after:
                    gone.append(f"{kind}{name}")
                elif before != after:
                    return []
        return gone


def look_at(folder: Path, pictures: Sequence[Picture]) -> Seen:
    """Return what there is to remember of pictures that can be read."""
    files = {}
    for picture in pictures:
        captions = hashlib.sha256("\n".join(picture.captions).encode()).hexdigest() if picture.caption_file else ""
        mask = digest_of_file(picture.mask_file) if picture.mask_file else ""
        files[picture.path.name] = (digest_of_file(picture.path), captions, mask)
    return Seen(str(folder.resolve()), pictures_digest(pictures), files)


def remember(state: Path, seen: Seen) -> None:
    """Keep what was tuned on; an answer does not fail because this cannot be written."""
    if recall(state) == seen:
        return
    try:
        write_atomically(state / PICTURES, canonical_json(asdict(seen)) + b"\n", mode=0o600)
    except StateError as error:
        log.warning("%s; should the pictures go away, the concept cannot be found without them", error)


def recall(state: Path) -> Seen | None:
    """Return what was tuned on last, or None if that is not known."""
    try:
        values = json.loads((state / PICTURES).read_bytes())
        files = {str(name): tuple(map(str, digests)) for name, digests in values["files"].items()}
        return Seen(str(values["folder"]), str(values["digest"]), {n: (a, b, c) for n, (a, b, c) in files.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def check_same_concept(asked: TuneRequest, kept: TuneRequest, state: Path) -> None:
    """Check that a command is about the concept that the state folder is for.

    Raises:
        RequestError: it names another concept or class word, both are named.

    """
    for flag, ours, theirs in (
        ("--concept", kept.concept, asked.concept),
        ("--class", kept.class_word, asked.class_word),
    ):
        if ours != theirs:
            raise RequestError(
                f"{state} is the state folder of {kept.concept}, a {kept.class_word} ({flag} {ours!r}); "
                f"this command says {flag} {theirs!r}: give another --state folder and a kit of its own for another "
                "concept, or --anew to tune this one in place of the other. Nothing was changed"
            )


def check_same_pictures(asked: TuneRequest, kept: TuneRequest, state: Path) -> None:
    """Check that a command is about the folder of pictures that the state folder remembers.

    Raises:
        RequestError: it is another folder, both are named.

    """
    if asked.images.resolve() != kept.images.resolve():
        raise RequestError(
            f"{state} is for the pictures in {kept.images}, this command says {asked.images}, where there are "
            "others: give the folder as before, or --anew to tune these in place of the others. Nothing was changed"
        )
