"""The options of `mos-bench identity`, the sizes of a run, and the bench that they open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mos_bench.identity.concepts.bench_concepts import SETS, concepts_in, tiny_concepts
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.curve import COUNTS, RANKS
from mos_bench.identity.measuring.methods import CURVE, RIVALS
from mos_bench.identity.measuring.paper_tables import FUSED
from mos_bench.identity.scoring.scorers import Clip, EfficientNet, Scorer, VisionModel
from mos_common.base_model import Base
from mos_common.drawing import Drawing
from mos_common.errors import RequestError

PARTS = ("curve", "table1", "table2", "multi", "figure3")
SCORERS = ("efficientnet", "clip")
METHODS = tuple(method.name for method in CURVE)
PAPER = Drawing(
    steps=50,
    guidance=7.5,
    scheduler="DDIMScheduler",
    negative=(
        "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, "
        "low quality"
    ),
)


@dataclass(frozen=True)
class Size:
    """How much a run measures: numbers of fused concepts, ranks, parts, protocol, methods."""

    counts: tuple[int, ...] = COUNTS
    ranks: tuple[int, ...] = (4, 1)
    parts: tuple[str, ...] = ("curve",)
    protocol: Protocol = field(default_factory=Protocol)
    methods: tuple[str, ...] = METHODS


DEFAULT = Size()
QUICK = Size(
    (3, 8),
    (4,),
    protocol=Protocol(prompts=1, seeds=1, probed=4),
    methods=tuple(method.name for method in CURVE if method not in RIVALS),
)
FULL = Size(parts=PARTS, protocol=Protocol(prompts=5, seeds=50, probed=0))


def size_of(*, quick: bool, full: bool) -> Size:
    """Return the size that `--quick`, `--full` or neither asks for.

    Raises:
        RequestError: both were given.

    """
    if quick and full:
        raise RequestError("--quick and --full contradict each other: give one of them")
    return QUICK if quick else FULL if full else DEFAULT


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    out: Path
    parts: tuple[str, ...] = PARTS
    half: str = "test"
    counts: tuple[int, ...] = COUNTS
    ranks: tuple[int, ...] = (4, 1)
    protocol: Protocol = field(default_factory=Protocol)
    fused: int = FUSED
    disjoint: bool = False
    sets: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    base: str = "tiny"
    concepts: str = "first"
    tuned: Path | None = None
    steps: int | None = None
    scorer: str = "efficientnet"
    clip: Path | None = None
    vision: Path | None = None
    docs: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise RequestError(f"--only {min(unknown)}: choose from {', '.join(PARTS)}")
        if unknown := set(self.methods) - set(METHODS):
            raise RequestError(f"--methods {min(unknown)}: choose from {', '.join(METHODS)}")
        if self.sets and self.parts != ("curve",):
            raise RequestError("--set changes gradient fusion in the curve only: add --only curve")
        if unknown_ranks := set(self.ranks) - set(RANKS):
            raise RequestError(f"--ranks {min(unknown_ranks)}: choose from {', '.join(map(str, RANKS))}")
        check_split(self.half)
        if self.scorer not in SCORERS:
            raise RequestError(f"--scorer {self.scorer}: choose from {', '.join(SCORERS)}")
        if (self.scorer == "clip") != (self.clip is not None):
            raise RequestError("--scorer clip and --clip FOLDER need each other: give both or neither")
        if (self.scorer == "clip") != (self.concepts not in SETS):
            raise RequestError(
                "--scorer clip and --concepts FOLDER need each other: CLIP scores photographs and the like, the "
                f"packaged concepts ({', '.join(SETS)}) and witnesses are drawn like tiny's pictures"
            )


def check_set(which: str) -> None:
    """Check the value of `--concepts` where only concepts of `tiny` will do.

    Raises:
        RequestError: there is no such set.

    """
    if which not in SETS:
        raise RequestError(f"--concepts {which}: choose from {', '.join(SETS)}")


def check_split(half: str) -> None:
    """Check the value of `--split`.

    Raises:
        RequestError: it is neither dev nor test.

    """
    if half not in ("dev", "test"):
        raise RequestError(f"--split {half}: choose dev or test")


def open_bench(options: Options, base: Base, *, helper: bool = False) -> Bench:
    """Return the bench for these options."""
    tiny = options.concepts in SETS
    clip = Clip(options.clip) if options.clip else None
    scorer: Scorer = VisionModel(options.vision) if options.vision else clip or EfficientNet()
    return Bench.on(
        base,
        options.out,
        options.protocol,
        scorer=scorer,
        concepts=tiny_concepts(options.concepts) if tiny else concepts_in(Path(options.concepts)),
        tiny=tiny,
        tuned=options.tuned,
        steps=options.steps,
        clip=clip,
        helper=helper,
    )
