"""The demo's picture: two people, each in a region and by her or his own changes, after a sketch.

Four seeds are drawn, 0 to 3, and all four are shown. How strongly what acts was chosen on the seeds
100 to 131, where 55 of 64 people had eyes and a mouth: little guidance and a strong sketch keep
faces whole. By the guidance of `tiny`, without a sketch, a third of them had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mos_bench.participant import Participant
from mos_bench.recognising import Recogniser
from mos_common.base_model import Base
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.witnesses.faces import kept_detector

SEEDS = range(4)
HEIGHT, WIDTH = 64, 128
ENLARGED, GAP, HEAD = 4, 8, 24


@dataclass(frozen=True)
class Subject:
    """One person of one picture: who it should be, whom the scorer sees, and if there is a face."""

    seed: int
    side: str
    who: str
    seen_as: str
    face: bool


def draw_command(out: Path, left: Participant, right: Participant, *, steps: int | None = None) -> list[str | Path]:
    """Return `mos-client draw` with one person on the left and another on the right.

    Each region's prompt describes the whole picture and names its own concept, so the base knows
    where in the picture the concept stands.
    """

    def side_by_side(first: str, second: str) -> str:
        return f"{first} on the left and {second} on the right in a meadow"

    a_left, a_right = f"a {left.class_word}", f"a {right.class_word}"
    return [
        *("mos-client", "draw", out / "fused", side_by_side(a_left, a_right)),
        *("--region", f"{side_by_side(f'({left.token}:1.3)', a_right)} @ 0,0,0.5,1"),
        *("--region", f"{side_by_side(a_left, f'({right.token}:1.3)')} @ 0.5,0,1,1"),
        *("--control", f"sketch: {out / 'sketch.png'} @ weight=2"),
        *("--guidance", "1.25", "--seeds", f"{SEEDS[0]}-{SEEDS[-1]}"),
        *("--width", str(WIDTH), "--height", str(HEIGHT), "--out", out / "picture.png"),
        *(["--steps", str(steps)] if steps else []),
    ]


def pictures(out: Path) -> list[Image.Image]:
    """Return what the command drew, in the order of the seeds."""
    drawn = []
    for seed in SEEDS:
        with Image.open(out / f"picture-{seed}.png") as opened:
            drawn.append(opened.convert("RGB"))
    return drawn


def judge(
    base: Base, drawn: Sequence[Image.Image], left: Participant, right: Participant, everybody: Sequence[Participant]
) -> list[Subject]:
    """Look at each half: whose pictures are most like it, and are there eyes and a mouth?"""
    recogniser, faces = Recogniser.of(base, {each.concept: each.pictures for each in everybody}), kept_detector()
    views = as_tensor(np.stack([np.asarray(picture) for picture in drawn]))
    subjects = []
    for side, someone, half in (("left", left, views[..., : WIDTH // 2]), ("right", right, views[..., WIDTH // 2 :])):
        whole = [answer == "yes" for answer in faces.both(half)]
        told = zip(SEEDS, recogniser.names(half), whole, strict=True)
        subjects += [Subject(seed, side, someone.concept, seen_as, face) for seed, seen_as, face in told]
    return subjects


def verdict(subjects: Sequence[Subject]) -> str:
    """Return how many people are recognised and have a face, as a person says it."""
    recognised, faces = sum(each.who == each.seen_as for each in subjects), sum(each.face for each in subjects)
    total = len(subjects)
    return f"{recognised} of {total} people recognised among the demo's concepts, eyes and mouth found in {faces}"


def poster(drawn: Sequence[Image.Image], subjects: Sequence[Subject]) -> Image.Image:
    """Return all pictures, enlarged without blur, with the verdict below."""
    wide, high = WIDTH * ENLARGED, HEIGHT * ENLARGED
    rows = -(-len(drawn) // 2)
    sheet = Image.new("RGB", (2 * wide + 3 * GAP, rows * (high + GAP) + GAP + HEAD), "white")
    for k, picture in enumerate(drawn):
        at = (GAP + k % 2 * (wide + GAP), GAP + k // 2 * (high + GAP))
        sheet.paste(picture.resize((wide, high), Image.Resampling.NEAREST), at)
    text = f"seeds {SEEDS[0]} to {SEEDS[-1]}: {verdict(subjects)}"
    ImageDraw.Draw(sheet).text((GAP, sheet.height - HEAD), text, fill="black", font=ImageFont.load_default(size=15))
    return sheet
