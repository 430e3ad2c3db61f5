"""The labelled art that `tiny` is trained on, and the art that it never sees.

`artwork/` holds four sets, each an array of 64 x 64 RGBA pictures (`NAME.npy.xz`) with one JSON label a picture (`NAME.json`):
`objects` are icons, `characters` people whose looks are labelled, `concepts` the identities that are kept from the base, twelve
views each, `wider` more icons and people in more styles, all of which may be learnt from (`mos_tiny.recipe.wider` puts it in words).
`objects` and `characters` hold more than may be learnt from: `trained_objects` and `trained_characters` decide.

    python -m mos_tiny.recipe.art                          what there is, under which licence
    python -m mos_tiny.recipe.art --pack RAW --out DIR     sets out of what `artwork/render.mjs` wrote to RAW

The art was rendered once from npm packages (versions in `LICENSES.md`): `node render.mjs RAW nouns.json`, and
`node widen.mjs RAW nouns.json wider_nouns.json` for `wider`.
"""

from __future__ import annotations

import io
import json
import lzma
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import UInt8

from mos_common.errors import StateError
from mos_common.files import write_atomically
from mos_common.shell import run, say
from mos_tiny import LICENCES
from mos_tiny.recipe import art_folder
from mos_tiny.recipe.world import NOUNS, STYLES

Label = dict[str, Any]
Sprite = UInt8[np.ndarray, "height width 4"]
SIDE = 64
SETS = ("objects", "characters", "concepts", "wider")
TRAINED_ICONS = "noto"
HELD_BACK = "held"  # the kind of icons whose noun was kept back for tests when the art was rendered


@dataclass(frozen=True)
class Art:
    """One set: pictures with straight alpha, and a label for each."""

    pictures: UInt8[np.ndarray, "n 64 64 4"]
    labels: list[Label]

    def where(self, **label: object) -> list[int]:
        """Which pictures carry these labels."""
        return [i for i, found in enumerate(self.labels) if all(found.get(k) == v for k, v in label.items())]


@cache
def load_art(name: str, folder: Path | None = None) -> Art:
    """The set `objects`, `characters`, `concepts` or `wider`; `folder` is the packaged one unless it is given.

    Raises:
        StateError: there is no such set.

    """
    folder = folder or art_folder()
    try:
        packed = (folder / f"{name}.npy.xz").read_bytes()
        labels = json.loads((folder / f"{name}.json").read_text())
    except OSError as error:
        raise StateError(f"no art named {name} in {folder}: expected {name}.npy.xz and {name}.json") from error
    pictures = np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False)
    if len(pictures) != len(labels):
        raise StateError(f"{folder}/{name}: {len(pictures)} pictures, but {len(labels)} labels")
    return Art(pictures, labels)


def trained_objects(objects: Art) -> list[int]:
    """Which icons the base may learn from: one icon style, the nouns of its world."""
    return [
        i
        for i, label in enumerate(objects.labels)
        if label["style"] == TRAINED_ICONS and label["kind"] != HELD_BACK and label["noun"] in NOUNS
    ]


def trained_characters(characters: Art, concepts: Art) -> list[int]:
    """Which people the base may learn from: those of its three styles who do not look as a kept one does.

    Stricter than the art itself, which keeps combinations of hair, back hair and colours apart: there a bald head comes with an
    invisible hair colour, so that one kept face (`personas` 0) was among the characters. It is now kept by what can be seen.
    """
    kept = {look(label) for label in concepts.labels if not label["unseenStyle"]}
    return [i for i, label in enumerate(characters.labels) if label["style"] in STYLES and look(label) not in kept]


def look(label: Label) -> tuple[object, ...]:
    """What can be told of a person of the base's own styles, whatever they wear and whatever they feel."""
    hair = None if label.get("hairKind") == "bald" else label["hatColor"] if label.get("hat") else label["hairColor"]
    keys = ("style", "hair", "hairKind", "hat", "skin", "beard", "glasses")
    return (*(label.get(key) for key in keys), hair)


def pack(raw: Path, out: Path) -> None:
    """Make those sets that are there out of `NAME.raw` (RGBA bytes) and `NAME.json` as the renderer wrote them."""
    for name in (name for name in SETS if (raw / f"{name}.raw").exists()):
        labels = (raw / f"{name}.json").read_bytes()
        pixels = np.frombuffer((raw / f"{name}.raw").read_bytes(), np.uint8)
        array = io.BytesIO()
        np.save(array, pixels.reshape(len(json.loads(labels)), SIDE, SIDE, 4), allow_pickle=False)
        write_atomically(out / f"{name}.npy.xz", lzma.compress(array.getvalue(), preset=9))
        write_atomically(out / f"{name}.json", labels)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.art")
def art(
    folder: Annotated[
        Path | None, typer.Option("--art", help="Where the sets lie; default: the packaged ones.")
    ] = None,
    raw: Annotated[Path | None, typer.Option("--pack", help="Make the sets from what render.mjs wrote here.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where --pack writes.")] = Path("artwork"),
) -> None:
    """Say what art there is, what of it the base learns from, and whose it is."""
    if raw is not None:
        pack(raw, out)
        folder = out
    for name in SETS:
        found = load_art(name, folder)
        styles = ", ".join(f"{count} {style}" for style, count in Counter(m["style"] for m in found.labels).items())
        say(f"{name}: {len(found.labels)} pictures ({styles})")
    icons = trained_objects(load_art("objects", folder))
    people = trained_characters(load_art("characters", folder), load_art("concepts", folder))
    wider = load_art("wider", folder)
    say(
        f"learnt from: {len(icons)} icons of {len(NOUNS)} nouns, {len(people)} people, and all {len(wider.labels)} of wider"
    )
    say(f"licences and credits: {LICENCES}")


if __name__ == "__main__":
    run(app)
