"""How often the base draws what its prompts say, measured on all drawings of fixed seeds.

    python -m mos_tiny.recipe.judge [BASE] --out build/judge --each 3

BASE is a diffusers folder, by default the embedded one. Each question gets the share of right
drawings, a floor (the same prompts with an untrained word in place of the subject), a ceiling
(real pictures of the prompts through the autoencoder), and the wanted share. The command also
measures the Fréchet distance of drawings from composed pictures in the scorer's features. It
writes OUT/judge.json, and OUT/judge.webp with the first drawings of each question.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import torch
import typer

from mos_common.base_model import Base, load_base
from mos_common.base_names import TINY
from mos_common.files import write_atomically
from mos_common.scores import ImageScorer
from mos_common.shell import run, say
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.frechet import frechet_distance
from mos_tiny.recipe.sheet import as_bytes, draw_prompts, save_sheet, tiled
from mos_tiny.recipe.trials import COLOURS, DRAWN_SCENES, Trial, caption_trials, noun_trials, pair_trials, person_trials
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.witnesses.features import Pictures
from mos_tiny.recipe.witnesses.lessons import pictures_of
from mos_tiny.recipe.witnesses.of_trials import TrialWitnesses, learn_of_trials
from mos_tiny.recipe.witnesses.witness import Answer

COLUMNS = 16
REAL_FOR_FRECHET = 1500


@dataclass(frozen=True)
class Question:
    """A question about an attribute, with the witness that answers it."""

    name: str
    attribute: str
    wanted: float
    answer: Answer

    def right(self, trials: Sequence[Trial], pictures: Pictures) -> list[bool]:
        """Tell for each picture whether it shows the truth of its trial."""
        return [name == trial.truth[self.attribute] for name, trial in zip(self.answer(pictures), trials, strict=True)]


@dataclass(frozen=True)
class Verdict:
    """The shares of right pictures for one question."""

    question: str
    drawn: float
    floor: float
    ceiling: float
    wanted: float
    drawings: int
    missed: dict[str, int]

    def __str__(self) -> str:
        """Return the row of the table."""
        reached = "reached" if self.drawn >= self.wanted else "short"
        row = f"{self.drawn:7.3f} {self.floor:7.3f} {self.ceiling:8.3f} {self.wanted:7.2f}  {reached:8}"
        return f"{self.question:34}{row}{self.drawings:5} drawings"


HEADER = f"{'':34}{'drawn':>7} {'floor':>7} {'ceiling':>8} {'wanted':>7}"


class Judge:
    """A base model, the witnesses, and the verdicts so far."""

    def __init__(self, base: Base, world: World, steps: int, floor: int) -> None:
        self.base, self.world, self.steps, self.floor = base, world, steps, floor
        self.witnesses: TrialWitnesses = learn_of_trials(world, base.vae)
        self.verdicts: list[Verdict] = []
        self.blocks: list[np.ndarray] = []

    def ask(self, trials: list[Trial], questions: Sequence[Question], seed: int) -> Pictures:
        """Draw the trials once, and ask every question of the drawings."""
        real = pictures_of(trials)
        wide = real.shape[-1] > real.shape[-2]
        drawn = draw_prompts(self.base, [t.prompt for t in trials], wide=wide, seed=seed, steps=self.steps)
        few = trials[:: max(1, len(trials) // self.floor)]
        untrained = draw_prompts(self.base, [t.untrained for t in few], wide=wide, seed=seed, steps=self.steps)
        rebuilt = reconstructed(self.base.vae, real)
        for question in questions:
            able = [i for i, trial in enumerate(trials) if question.attribute in trial.truth]
            able_few = [i for i, trial in enumerate(few) if question.attribute in trial.truth]
            shown = [trials[i] for i in able]
            right = question.right(shown, drawn[able])
            verdict = Verdict(
                question.name,
                drawn=float(np.mean(right)),
                floor=float(np.mean(question.right([few[i] for i in able_few], untrained[able_few]))),
                ceiling=float(np.mean(question.right(shown, rebuilt[able]))),
                wanted=question.wanted,
                drawings=len(shown),
                missed=dict(
                    Counter(
                        t.truth[question.attribute] for t, ok in zip(shown, right, strict=True) if not ok
                    ).most_common()
                ),
            )
            self.verdicts.append(verdict)
            say(str(verdict))
        columns = COLUMNS // 2 if wide else COLUMNS
        self.blocks.append(tiled(as_bytes(drawn[: 2 * columns]), columns))
        return drawn

    def ask_all(self, each: int, seed: int = 7) -> dict[str, float]:
        """Ask all questions; return Fréchet distances. `each` scales the number of drawings."""
        random, answers = Random(seed), self.witnesses.answers
        say(HEADER)
        flat = noun_trials(COLOURS, each, self.world, random)
        self.ask(
            flat,
            [
                Question("noun, on a flat background", "noun", 0.9, answers["noun on a flat background"]),
                Question("background colour", "background", 0.95, answers["flat background"]),
            ],
            seed,
        )
        self.ask(
            noun_trials(DRAWN_SCENES, each, self.world, random),
            [
                Question("noun, in a scene", "noun", 0.75, answers["noun in a scene"]),
                Question("scene", "background", 0.95, answers["scene"]),
            ],
            seed + 1,
        )
        self.ask(
            person_trials(24 * each, self.world, random),
            [
                Question("person: style", "style", 0.95, answers["style"]),
                Question("person: hair colour", "hair colour", 0.85, answers["hair colour"]),
                Question("person: eyes and mouth visible", "eyes and mouth", 0.9, answers["eyes and mouth"]),
            ],
            seed + 2,
        )
        self.ask(
            pair_trials(16 * each, self.world, random),
            [
                Question("pair of things: both right", "things", 0.6, on_both_sides(answers["coloured thing"])),
                Question("pair of people: both right", "people", 0.6, on_both_sides(answers["person"])),
            ],
            seed + 3,
        )
        say(
            f"(the face detector takes {self.witnesses.faceless_taken_for_faces:.3f} of faces without eyes or mouth "
            "for whole faces)"
        )
        return self.frechet(caption_trials(60 * each, self.world, random), seed + 4)

    def frechet(self, trials: list[Trial], seed: int) -> dict[str, float]:
        """Return the Fréchet distances of drawings, floor and ceiling from composed pictures."""
        features = ImageScorer().features
        others = features(pictures_of(caption_trials(REAL_FOR_FRECHET, self.world, Random(seed))))
        drawn = draw_prompts(self.base, [t.prompt for t in trials], seed=seed, steps=self.steps)
        untrained = draw_prompts(self.base, [t.untrained for t in trials[::4]], seed=seed, steps=self.steps)
        rebuilt = reconstructed(self.base.vae, pictures_of(trials))
        distances = {
            "drawn": frechet_distance(features(drawn), others),
            "floor": frechet_distance(features(untrained), others),
            "ceiling": frechet_distance(features(rebuilt), others),
        }
        say("Fréchet distance x 1000: " + ", ".join(f"{name} {value:.1f}" for name, value in distances.items()))
        self.blocks.append(tiled(as_bytes(drawn[: 2 * COLUMNS]), COLUMNS))
        return distances


def on_both_sides(answer: Callable[[Pictures], list[str]]) -> Answer:
    """Return an answer about the left and the right half of wide pictures."""

    def both(pictures: Pictures) -> list[str]:
        left, right = (answer(half.contiguous()) for half in pictures.chunk(2, dim=3))
        return [" | ".join(sides) for sides in zip(left, right, strict=True)]

    return both


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.judge RUN/base --out build/judge")
def judge(
    base: Annotated[str, typer.Argument(help="A diffusers folder; default: the embedded base.")] = TINY,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("build/judge"),
    each: Annotated[
        int, typer.Option("--each", help="Drawings of each noun; the other numbers are multiples of it.")
    ] = 3,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 20,
    floor: Annotated[int, typer.Option("--floor", help="Approximate number of drawings for each floor.")] = 36,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 2,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, …; default: the fastest one available.")
    ] = None,
) -> None:
    """Measure what a base draws, with floor and ceiling."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    begun = time.monotonic()
    judged = load_base(base, device=device, dtype="float32")
    measured = Judge(judged, World(), steps, floor)
    distances = measured.ask_all(each)
    seconds = round(time.monotonic() - begun, 1)
    report = {
        "base": judged.fingerprint,
        "each": each,
        "steps": steps,
        "seconds": seconds,
        "verdicts": [asdict(verdict) for verdict in measured.verdicts],
        "frechet": distances,
        "faceless_taken_for_faces": measured.witnesses.faceless_taken_for_faces,
    }
    write_atomically(out / "judge.json", (json.dumps(report, indent=2) + "\n").encode())
    save_sheet(measured.blocks, out / "judge.webp")
    say(f"{seconds:.0f} s; {out / 'judge.json'}, {out / 'judge.webp'}")


if __name__ == "__main__":
    run(app)
