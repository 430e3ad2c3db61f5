"""`mos-bench several`: draw several concepts in one picture in every way, and judge who is there.

Every picture is kept in the folder's cache, so that an interrupted run goes on where it stood, and
several processes may share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mos_bench.identity.concepts.bench_concepts import BenchConcept, in_fusion_order, split, tiny_concepts
from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.identity.drawing.models import FusedModels, FusionSpec
from mos_bench.identity.pages.publishing import publish_file
from mos_bench.identity.storage.cache import Cache, picture_bytes
from mos_bench.identity.storage.sharing import Sharing
from mos_bench.recognising import Recogniser
from mos_bench.several.judging import Gate, Row, gates, judged
from mos_bench.several.models import Models
from mos_bench.several.scenes import ALONE, LAYOUTS, Asked, Layout, scenes
from mos_bench.several.tables import csv_of, gates_table, page, rows_table
from mos_bench.several.ways import FUSED, FUSED_IN_REGIONS, OWN_IN_REGIONS, SINGLE, WAYS, WAYS_ALONE, Way
from mos_client.drawing.sheet import contact_sheet
from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.pictures import as_image, save_image
from mos_common.shell import say
from mos_server.fusion.methods.gradient import GradientSettings

SHOWN = 2  # pictures of each way on a sheet


@dataclass(frozen=True)
class Options:
    """What is measured: numbers of fused concepts, layouts by slug, pictures of each in a way."""

    out: Path
    counts: tuple[int, ...] = (14,)
    only: tuple[str, ...] = ()
    pictures: int = 100
    steps: int = 20
    tuned: Path | None = None
    docs: Path | None = None
    settings: GradientSettings = field(default_factory=GradientSettings)

    def __post_init__(self) -> None:
        if unknown := set(self.only) - {layout.slug for layout in LAYOUTS}:
            known = ", ".join(layout.slug for layout in LAYOUTS)
            raise RequestError(f"--only {min(unknown)}: there is no such layout; known: {known}")

    @property
    def layouts(self) -> list[Layout]:
        """The layouts that are drawn."""
        return [layout for layout in LAYOUTS if not self.only or layout.slug in self.only]


def run_several(options: Options, *, helper: bool = False) -> dict[int, list[Row]]:
    """Measure every n; write OUT/results/several.md, several.csv and sheets. A helper only draws.

    Raises:
        RequestError: the concepts are too few for an n or a layout.

    """
    torch.set_num_threads(1)
    base = load_base("tiny", device="cpu")
    folder, to = options.out / base.fingerprint[:12], options.out / "results"
    tuned = TunedConcepts(base, folder, tuned=options.tuned or folder / "tuned")
    measured: dict[int, tuple[list[Row], list[Gate]]] = {}
    with closing(Cache(folder / "cache.sqlite")) as cache:
        sharing = Sharing(folder / "locks", helper=helper)
        for n in options.counts:
            drawing = _Drawing(base, fused_models(base, folder, tuned, n, options.settings, sharing), cache, sharing, n)
            chosen = order()[:n]
            recogniser = None
            if not helper:
                recogniser = Recogniser.of(base, {each.name: tuned.pictures(each) for each in chosen})
            rows = [
                row
                for layout in (ALONE, *options.layouts)
                for row in drawing.rows(layout, chosen, recogniser, options, to)
            ]
            if rows:
                measured[n] = rows, _gates(rows)
                say(f"\nn = {n}\n\n{rows_table(rows)}\n\n{gates_table(measured[n][1])}")
    if not helper:
        _write(base, options, to, measured)
    return {n: rows for n, (rows, _) in measured.items()}


def order() -> list[BenchConcept]:
    """Return all concepts in the order in which they are taken: those that come tuned first.

    Of these `dev` comes first. Then come the others of `test` in fusion order, then of `dev`.
    """
    halves = {half: in_fusion_order(of) for half, of in split(tiny_concepts()).items()}
    here = {file.name.partition(".")[0] for file in SHIPPED.glob("*.ed-lora.*")}
    packaged = [each for half in ("dev", "test") for each in halves[half] if each.slug in here]
    return [*packaged, *(each for half in ("test", "dev") for each in halves[half] if each.slug not in here)]


def fused_models(
    base: Base, folder: Path, tuned: TunedConcepts, n: int, settings: GradientSettings, sharing: Sharing
) -> Models:
    """Tune what is not tuned yet, and fuse the first n concepts, unless that is done.

    Raises:
        RequestError: there are not so many concepts.

    """
    chosen = order()[:n]
    if len(chosen) < n:
        raise RequestError(f"--n {n}: expected at most {len(chosen)}")
    tuned.tune_all(chosen, ED_LORA, sharing)
    concepts = {each.name: tuned.concept(each, ED_LORA) for each in chosen}
    spec, fused = FusionSpec(tuple(concepts.values()), settings), FusedModels(base, folder)
    sharing.all_of(f"fusing {n}", [spec], key=lambda spec: spec.name(base), done=fused.has, do=fused.make)
    return Models(base, fused.model(spec), concepts)


@dataclass(frozen=True)
class _Drawing:
    """Draws and judges with the models of one n."""

    base: Base
    models: Models
    cache: Cache
    sharing: Sharing
    n: int

    def rows(
        self,
        layout: Layout,
        concepts: Sequence[BenchConcept],
        recogniser: Recogniser | None,
        options: Options,
        to: Path,
    ) -> list[Row]:
        """Draw a layout in every way; without a recogniser, that is all."""
        asked, how = scenes(layout, concepts, options.pictures), Drawing(steps=options.steps)
        ways = WAYS_ALONE if layout is ALONE else WAYS
        for way in ways:
            self._draw(way, asked, how)
        if recogniser is None:
            return []
        self._show(layout, ways, asked, how, to)
        return [self._judged(way, asked, how, recogniser) for way in ways]

    def _draw(self, way: Way, asked: Sequence[Asked], how: Drawing) -> None:
        keys = {each: way.key(self.models, each, how) for each in asked}

        def do(each: Asked) -> None:
            self.cache.put("drawings", {keys[each]: picture_bytes(way.draw(self.models, each, how))})

        self.sharing.all_of(
            f"n = {self.n}, {asked[0].layout.title}: {way.title}",
            asked,
            key=keys.__getitem__,
            done=lambda each: not self.cache.missing("drawings", [keys[each]]),
            do=do,
        )

    def _judged(self, way: Way, asked: Sequence[Asked], how: Drawing, recogniser: Recogniser) -> Row:
        pictures = []
        for each in asked:
            picture = self.cache.picture(way.key(self.models, each, how))
            parts = torch.stack([each.layout.part(picture, k) for k in range(len(each.concepts))])
            pictures.append(judged(each.names, recogniser.likeness(parts).numpy(), list(recogniser.known)))
        return Row(asked[0].layout.title, way.title, tuple(pictures))

    def _show(self, layout: Layout, ways: Sequence[Way], asked: Sequence[Asked], how: Drawing, to: Path) -> None:
        """Write a sheet: the first pictures, drawn in every way."""
        shown = [(way, each) for each in asked[:SHOWN] for way in ways]
        images = [as_image(self.cache.picture(way.key(self.models, each, how))) for way, each in shown]
        labels = [way.title for way, _ in shown]
        save_image(contact_sheet(images, labels), to / f"sheet-{self.n}-{layout.slug}.png")


def _gates(rows: Sequence[Row]) -> list[Gate]:
    """Return the goals of every layout."""
    of = {(row.layout, row.way): row for row in rows}
    layouts = [row.layout for row in rows if row.way == OWN_IN_REGIONS.title]
    return [
        gate
        for layout in layouts
        for gate in gates(
            of[ALONE.title, SINGLE.title],
            of[layout, OWN_IN_REGIONS.title],
            [of[layout, way.title] for way in (FUSED, FUSED_IN_REGIONS)],
        )
    ]


def _write(base: Base, options: Options, to: Path, measured: dict[int, tuple[list[Row], list[Gate]]]) -> None:
    write_atomically(to / "several.csv", csv_of(measured))
    write_atomically(to / "several.md", page(base.fingerprint, options.steps, measured).encode())
    if options.docs is not None:
        for name in ("several.md", "several.csv"):
            publish_file(to / name, options.docs)
    say(f"{to}: several.md, several.csv and contact sheets")
