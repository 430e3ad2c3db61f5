"""Several concepts in one picture: how many are recognised, by prompt, regions and own changes.

Fourteen packaged concepts are fused. Scenes go in a circle, so that each concept stands at every
place once: two and three side by side, two people, and two whose regions overlap by 30 % of the
picture. A part of the picture as wide as high is cut out where each stands, and recognised among
all fourteen. The floor is the base with class words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept, in_fusion_order, split, tiny_concepts
from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.recognising import Recogniser
from mos_client.drawing.sheet import contact_sheet
from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing, draw
from mos_common.edlora import LowRank
from mos_common.files import write_atomically
from mos_common.fused_model import FusedModel, NamedConcept
from mos_common.own.attach import OwnChanges, attached_with_own
from mos_common.pictures import as_image, save_image
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.shell import say
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings
from mos_tiny.recipe.world import with_article

FUSED = 14
WAYS = ("class words", "one prompt", "one prompt, own changes", "regions", "regions, own changes")
PLACES = ("in the city", "on a pink background", "in the desert", "in a room")
SIDE = 64
SHOWN = 6


@dataclass(frozen=True)
class Layout:
    """Where concepts stand: the (left, right) of each one's region, as shares of the width."""

    title: str
    spans: tuple[tuple[float, float], ...]
    people: bool = False

    @property
    def width(self) -> int:
        """The width of a picture, in pixels."""
        return SIDE * len(self.spans)

    def scenes(self, concepts: Sequence[BenchConcept]) -> Iterator[tuple[BenchConcept, ...]]:
        """Yield who stands beside whom."""
        circle = [concept for concept in concepts if concept.person or not self.people]
        for i in range(len(circle)):
            yield tuple(circle[(i + k) % len(circle)] for k in range(len(self.spans)))

    def part(self, picture: Float[Tensor, "3 side width"], k: int) -> Float[Tensor, "3 side side"]:
        """Return the square part around the middle of the k-th region."""
        left, right = self.spans[k]
        begin = round((left + right) / 2 * self.width - SIDE / 2)
        begin = min(max(begin, 0), self.width - SIDE)
        return picture[..., begin : begin + SIDE]


LAYOUTS = (
    Layout("two", ((0, 0.5), (0.5, 1))),
    Layout("three", ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))),
    Layout("two people", ((0, 0.5), (0.5, 1)), people=True),
    Layout("two, 30 % overlap", ((0, 0.65), (0.35, 1))),
)


@dataclass(frozen=True)
class Row:
    """One layout drawn in one way: subjects, those recognised, pictures, those with all of them."""

    layout: str
    way: str
    subjects: int
    recognised: int
    pictures: int
    all_in: int

    def __str__(self) -> str:
        """Return the row of the table."""
        share = self.recognised / self.subjects
        return f"| {self.layout} | {self.way} | {share:.3f} of {self.subjects} | {self.all_in} of {self.pictures} |"


def run_several(out: Path, *, seeds: int = 3, steps: int = 20, settings: GradientSettings | None = None) -> list[Row]:
    """Fuse the packaged concepts, draw and recognise; write OUT/several.json and sheets."""
    base = load_base("tiny", device="cpu")
    tuned = TunedConcepts(base, out, tuned=SHIPPED)
    concepts = packaged(tuned)[:FUSED]
    named = [NamedConcept("", tuned.concept(concept, ED_LORA)) for concept in concepts]
    fused = fuse(base, named, settings or GradientSettings(), progress=say)
    own = {each.concept.name: each.concept.pairs for each in named}
    recogniser = Recogniser.of(base, {concept.name: tuned.pictures(concept) for concept in concepts})
    rows = []
    for layout in LAYOUTS:
        for way in WAYS:
            rows.append(_row(base, layout, way, concepts, fused, own, recogniser, Drawn(out, seeds, steps)))
            say(str(rows[-1]))
    report = {"base": base.fingerprint, "seeds": seeds, "steps": steps, "rows": [asdict(row) for row in rows]}
    write_atomically(out / "several.json", json.dumps(report, indent=1).encode() + b"\n")
    say("\n| in one picture | drawn by | recognised among 14 | all of them |\n|---|---|---|---|")
    for row in rows:
        say(str(row))
    return rows


@dataclass(frozen=True)
class Drawn:
    """Where sheets go, and how much is drawn."""

    out: Path
    seeds: int
    steps: int


def packaged(tuned: TunedConcepts) -> list[BenchConcept]:
    """Return the concepts that come tuned with the bench, those of `dev` first."""
    halves = split(tiny_concepts())
    ordered = [concept for half in ("dev", "test") for concept in in_fusion_order(halves[half])]
    return [concept for concept in ordered if tuned.path(concept, ED_LORA).is_file()]


def _row(
    base: Base,
    layout: Layout,
    way: str,
    concepts: Sequence[BenchConcept],
    fused: FusedModel,
    own: Mapping[str, Mapping[str, LowRank]],
    recogniser: Recogniser,
    drawn: Drawn,
) -> Row:
    named = way != WAYS[0]
    scenes, right, sheet = list(layout.scenes(concepts)), list[list[bool]](), []
    acting = own if "own" in way else {}
    with attached_with_own(base, fused.changes if named else {}, acting) as attached:
        for i, scene in enumerate(scenes):
            pictures = _draw(base, layout, way, scene, PLACES[i % len(PLACES)], fused, attached, drawn)
            sheet.append(as_image(pictures[0]))
            seen = [recogniser.names(torch.stack([layout.part(p, k) for p in pictures])) for k in range(len(scene))]
            right += [[seen[k][n] == scene[k].name for k in range(len(scene))] for n in range(len(pictures))]
    titles = [" ".join(concept.slug for concept in scene) for scene in scenes]
    name = f"{layout.title} {way}".replace(" %", "").replace(",", "").replace(" ", "-")
    save_image(contact_sheet(sheet[:SHOWN], titles[:SHOWN]), drawn.out / f"{name}.png")
    found = np.array(right)
    return Row(layout.title, way, found.size, int(found.sum()), len(found), int(found.all(axis=1).sum()))


def _draw(
    base: Base,
    layout: Layout,
    way: str,
    scene: Sequence[BenchConcept],
    place: str,
    fused: FusedModel,
    attached: OwnChanges,
    drawn: Drawn,
) -> Float[Tensor, "seeds 3 side width"]:
    classes = [with_article(concept.class_word) for concept in scene]
    names = [concept.name for concept in scene]
    regions = []
    if way.startswith("regions"):
        for k, (left, right) in enumerate(layout.spans):
            subjects = [names[k] if k == other else classes[other] for other in range(len(scene))]
            regions.append(Region(sentence(subjects, place), Box(left, 0, right, 1)))
    prompt = sentence(names if way.startswith("one prompt") else classes, place)
    how = Drawing(steps=drawn.steps, height=SIDE, width=layout.width)
    return draw(
        base,
        [prompt] * drawn.seeds,
        range(drawn.seeds),
        vocabulary=fused.vocabulary,
        regions=regions,
        how=how,
        own=attached,
    )


def sentence(subjects: Sequence[str], place: str) -> str:
    """Return one sentence about all subjects, from left to right."""
    if len(subjects) == 2:
        return f"{subjects[0]} on the left and {subjects[1]} on the right {place}"
    return f"{' and '.join(subjects)} {place}"
