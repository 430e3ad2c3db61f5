"""The labelled art that `tiny` is trained on, and the art that it never sees.

`artwork/` holds five sets. Each is an array of 64 x 64 RGBA pictures (`NAME.npy.xz`) with a JSON
list of labels, one for each picture (`NAME.json`):

- `objects`: icons. `trained_objects` selects those for training.
- `characters`: people with labelled looks. `trained_characters` selects those for training.
- `concepts`: identities that are kept from the base, in twelve views each.
- `wider`: icons and people in more styles, all for training (captions: `mos_tiny.recipe.wider`).
- `alike`: people of the base's own styles in groups that look alike, kept from it, in twelve views.

    python -m mos_tiny.recipe.art                       list the sets and their licences
    python -m mos_tiny.recipe.art --pack RAW --out DIR  pack what `artwork/render.mjs` wrote to RAW

The art was rendered once from npm packages (versions in `LICENSES.md`): `node render.mjs RAW
nouns.json`, `node widen.mjs RAW nouns.json wider_nouns.json` for `wider`, and `node alike.mjs RAW`
for `alike`.
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
SETS = ("objects", "characters", "concepts", "wider", "alike")
TRAINED_ICONS = "noto"
HELD_BACK = "held"  # the kind of icons whose noun was reserved for tests when the art was rendered


@dataclass(frozen=True)
class Art:
    """A set of pictures with straight alpha, and a label for each."""

    pictures: UInt8[np.ndarray, "n 64 64 4"]
    labels: list[Label]

    def where(self, **label: object) -> list[int]:
        """Return the indices of the pictures that have these labels."""
        return [i for i, own in enumerate(self.labels) if all(own.get(k) == v for k, v in label.items())]


@cache
def load_art(name: str, folder: Path | None = None) -> Art:
    """Load one of `SETS`, by default the packaged one.

    Raises:
        StateError: The folder has no such set, or its pictures and labels differ in number.

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
    """Return the indices of the icons for training: one icon style, the nouns of the tiny world."""
    return [
        i
        for i, label in enumerate(objects.labels)
        if label["style"] == TRAINED_ICONS and label["kind"] != HELD_BACK and label["noun"] in NOUNS
    ]


def trained_characters(characters: Art, concepts: Art) -> list[int]:
    """Return the indices of the people for training: three styles, nobody who looks like a concept.

    Looks are compared by what is visible. The labels alone are not enough: they give a bald head an
    invisible hair colour, which once let a concept's face (`personas` 0) in among the characters.
    """
    kept = {look(label) for label in concepts.labels if not label["unseenStyle"]}
    return [i for i, label in enumerate(characters.labels) if label["style"] in STYLES and look(label) not in kept]


def look(label: Label) -> tuple[object, ...]:
    """Return the visible features of a person, without clothes and mood."""
    hair = None if label.get("hairKind") == "bald" else label["hatColor"] if label.get("hat") else label["hairColor"]
    keys = ("style", "hair", "hairKind", "hat", "skin", "beard", "glasses")
    return (*(label.get(key) for key in keys), hair)


def pack(raw: Path, out: Path) -> None:
    """Pack the sets that the renderer wrote as `NAME.raw` (RGBA bytes) and `NAME.json`."""
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
        Path | None, typer.Option("--art", help="Folder of the sets; default: the packaged ones.")
    ] = None,
    raw: Annotated[
        Path | None, typer.Option("--pack", help="Pack the sets that render.mjs wrote to this folder.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that --pack writes.")] = Path("artwork"),
) -> None:
    """List the art, the part of it that the base learns from, and its licences."""
    if raw is not None:
        pack(raw, out)
        folder = out
    for name in SETS:
        labels = load_art(name, folder).labels
        styles = ", ".join(f"{count} {style}" for style, count in Counter(m["style"] for m in labels).items())
        say(f"{name}: {len(labels)} pictures ({styles})")
    icons = trained_objects(load_art("objects", folder))
    people = trained_characters(load_art("characters", folder), load_art("concepts", folder))
    wider = load_art("wider", folder)
    say(
        f"for training: {len(icons)} icons of {len(NOUNS)} nouns, {len(people)} people, "
        f"and all {len(wider.labels)} of wider"
    )
    say(f"licences and credits: {LICENCES}")


if __name__ == "__main__":
    run(app)
