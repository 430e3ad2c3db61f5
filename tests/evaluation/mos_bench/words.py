"""Measure what one embedding per word keeps of a concept: `python -m mos_bench.words`.

Identity is the mean cosine of drawings with the concept's held-back pictures, the error of
predictions their mean square distance from those with layer-wise words. Both are in contexts and at
seeds that no fit has seen. The shipped concepts are measured; they are tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import tiny_concepts, write_pictures
from mos_bench.identity.concepts.tuning import SHIPPED
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.base_model import Base, load_base
from mos_common.concept import Concept, words_of
from mos_common.concept_file import read_concept
from mos_common.drawing import draw
from mos_common.edlora import attached
from mos_common.exporting.fitting import Fit, fit_words, prediction_error, record_predictions
from mos_common.files import write_atomically
from mos_common.prompts import SCORED, about
from mos_common.scores import ImageScorer, image_alignment
from mos_common.shell import say
from mos_tiny.recipe.compose import World

HELD_BACK = 2  # of each concept's pictures, as in tuning
FIRST_SEED = 1000  # the fits use the seeds from 0
LAYERWISE = "layer-wise"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Where results and pictures are kept.")] = Path("build/words"),
    seeds: Annotated[int, typer.Option(min=1, help="Drawings of each context.")] = 2,
    fits: Annotated[str, typer.Option(help=f"Of {', '.join(Fit)}.")] = "mean,predictions",
    every: Annotated[str, typer.Option(metavar="I/N", help="Concepts I, I + N, …: one of N processes.")] = "0/1",
) -> None:
    """Measure the shipped concepts, or some of them, and print a table."""
    torch.set_num_threads(1)
    base, (first, step) = load_base("tiny", device="cpu"), map(int, every.split("/"))
    world, files = World(), {file.name.split(".")[0]: file for file in SHIPPED.glob("*.ed-lora.*")}
    shipped = [concept for concept in tiny_concepts() if concept.slug in files]
    kinds = [LAYERWISE, *fits.split(",")]
    for seed in range(seeds):
        for concept in shipped[first::step]:
            pictures = write_pictures(concept, out / "pictures", world)
            _measure(base, read_concept(files[concept.slug]), pictures, kinds, seed, out)
    say(_table(out, kinds))


def _measure(base: Base, concept: Concept, pictures: Path, kinds: Sequence[str], seed: int, out: Path) -> None:
    """Write the scores of one concept at one seed; those of earlier runs are kept."""
    file = out / "scores" / f"{pictures.name}.{seed}.json"
    scores: dict[str, float] = json.loads(file.read_bytes()) if file.is_file() else {}
    scorer = ImageScorer()
    references = scorer.features(load_pictures(find_pictures(pictures)[-HELD_BACK:], base.picture_size))
    with attached(base, concept.pairs):
        recorded = record_predictions(base, concept.name, words_of(concept, base), SCORED, FIRST_SEED + seed)
    for kind in kinds:
        words = _words(base, concept, kind, out)
        if error_of(kind) not in scores:
            with attached(base, concept.pairs):
                scores[error_of(kind)] = prediction_error(base, concept.name, words, recorded)
        if kind not in scores:
            seeds = [FIRST_SEED + seed * len(SCORED) + i for i in range(len(SCORED))]
            prompts = [about(context, concept.name) for context in SCORED]
            with attached(base, concept.pairs):
                drawn = draw(base, prompts, seeds, vocabulary={concept.name: words})
            scores[kind] = image_alignment(scorer.features(drawn), references)
        write_atomically(file, json.dumps(scores).encode())
        say(f"{concept.name} seed {seed} {kind}: identity {scores[kind]:.4f}, error {scores[error_of(kind)]:.5f}")


def error_of(kind: str) -> str:
    """Return the name of the error of predictions with a kind of words."""
    return f"{kind}: error"


def _words(base: Base, concept: Concept, kind: str, out: Path) -> Tensor:
    layerwise = words_of(concept, base)
    if kind == LAYERWISE:
        return layerwise
    kept = out / "fitted" / f"{concept.name[1:-1]}.{kind}.safetensors"
    if not kept.is_file():
        fitted = fit_words(base, concept.pairs, concept.name, layerwise, Fit(kind))
        write_atomically(kept, save({"words": fitted}))
    return load_file(kept)["words"]


def _table(out: Path, kinds: Sequence[str]) -> str:
    """Return means over concepts (± the standard deviation over them) as a table of Markdown."""
    by_concept: dict[str, list[Mapping[str, float]]] = {}
    for file in sorted((out / "scores").glob("*.json")):
        scores = json.loads(file.read_bytes())
        if {*kinds, *map(error_of, kinds)} <= set(scores):
            by_concept.setdefault(file.name.split(".")[0], []).append(scores)
    named = [*kinds, *map(error_of, kinds)]
    means = {name: {one: fmean(of[one] for of in found) for one in named} for name, found in by_concept.items()}
    rows = [f"{len(means)} concepts", "", "| words | identity | lost | error of predictions |", "|---|---|---|---|"]
    for kind in kinds:
        identity = [of[kind] for of in means.values()]
        lost = [of[LAYERWISE] - of[kind] for of in means.values()]
        errors = [of[error_of(kind)] for of in means.values()]
        rows.append(f"| {kind} | {_spread(identity)} | {_spread(lost)} | {_spread(errors)} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{fmean(values):.4f}"


if __name__ == "__main__":
    app()
