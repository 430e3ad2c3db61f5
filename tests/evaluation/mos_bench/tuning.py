"""How each tuning setting changes identity and prompt-following (docs/tuning.md).

Identities that the base never saw are tuned with the base's preset and with one setting changed at
a time, with the same seed and to the last step. They are drawn in contexts and with seeds that
tuning never used. The table gives, for each change, the paired difference to the preset with its 95
% interval over identities.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from mos_bench.identity.measuring.statistics import LEVEL
from mos_bench.pictures import compose_pictures
from mos_bench.teach import check_part, chosen, class_word_of, taught_on
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.tune_folder import tune_folder
from mos_common.base_model import Base, load_base
from mos_common.concept import words_of
from mos_common.concept_file import read_concept
from mos_common.digests import digest_of_code, digest_of_json
from mos_common.drawing import Drawing, draw
from mos_common.edlora import LowRank, attached
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.prompts import SCORED, about
from mos_common.scores import ImageScorer, context_alignment, image_alignment
from mos_common.shell import say
from mos_common.words import Vocabulary
from mos_tiny.recipe.compose import Subject, World

PRESET = "preset"
SEEDS = (100, 101)
VARIANTS: Mapping[str, Mapping[str, str]] = {
    PRESET: {},
    "one word a layer for V_class only (P+)": {"method": "p-plus"},
    "one embedding (textual inversion)": {"method": "textual-inversion"},
    "one embedding and pairs (LoRA)": {"method": "lora"},
    "pairs only": {"method": "plain-lora"},
    "keys and values only (Custom Diffusion)": {"method": "custom-diffusion"},
    "rank 1": {"rank": "1"},
    "rank 8": {"rank": "8"},
    "three words": {"words": "3"},
    "frozen directions": {"frozen_directions": "true"},
    "half the steps": {"steps": "half"},
    "twice the steps": {"steps": "double"},
    "text encoder left alone": {"learning_rate_text": "0"},
    "masked loss": {"background_weight": "0"},
    "background counts a half": {"background_weight": "0.5"},
    "attention regularisation 0.01": {"attention_weight": "0.01"},
    "attention regularisation 0.1": {"attention_weight": "0.1"},
    "noise offset 0.01": {"noise_offset": "0.01"},
    "noise offset 0.1": {"noise_offset": "0.1"},
    "no norm stop": {"norm_stop": "0"},
    "half the captions plain templates": {"template_share": "0.5"},
    "all captions plain templates": {"template_share": "1"},
    "mirrored too": {"mirror": "true"},
    "four crops": {"crops": "4"},
    "running average 0.98": {"averaging": "0.98"},
}


@dataclass(frozen=True)
class Outcome:
    """One identity tuned in one way.

    `way` is how far identity moved from the class word to its own pictures; `following` is
    prompt-following.
    """

    variant: str
    kind: str
    identity: str
    way: float
    following: float
    seconds: float


@dataclass(frozen=True)
class Yardstick:
    """The references of one identity, its floor and its ceiling."""

    references: torch.Tensor
    usual: torch.Tensor
    floor: float
    ceiling: float


def measure(out: Path, *, each: int, base_name: str, only: Sequence[str], part: int, parts: int) -> list[Outcome]:
    """Tune and score, and write `out`/tuning.json.

    Outcomes already measured on the same base with the same settings are kept. `part` of `parts`
    tunes only its share, so that several processes divide the work.
    """
    base, world, outcomes = load_base(base_name), World(), []
    folder = out / base.fingerprint[:12]
    variants = {name: VARIANTS[name] for name in VARIANTS if not only or name in (PRESET, *only)}
    for i, (kind, name, views) in enumerate(chosen(each)):
        for variant, changes in variants.items():
            done = folder / f"{name}-{_digest(base, changes)}.json"
            if not done.is_file() and i % parts == part:
                outcome = _outcome(base, folder, variant, changes, kind, name, views, world)
                write_atomically(done, json.dumps(asdict(outcome)).encode())
            if done.is_file():
                outcome = Outcome(**json.loads(done.read_bytes()) | {"variant": variant})
                outcomes.append(outcome)
                say(f"{variant:>40} {name:>20}  way {outcome.way:.2f}  following {outcome.following:.2f}")
    if outcomes:
        summary = {
            "base": base.fingerprint,
            "preset": base.preset.name,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        write_atomically(out / "tuning.json", json.dumps(summary, indent=1).encode() + b"\n")
        write_atomically(out / "tuning.md", ("\n".join(table(outcomes)) + "\n").encode())
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield Markdown: the preset's means, then the paired difference of every change."""
    by_variant: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_variant.setdefault(outcome.variant, {})[outcome.identity] = outcome
    preset = by_variant[PRESET]
    yield "| setting | way | change | following | change | seconds |"
    yield "|---|---|---|---|---|---|"
    for variant, of_variant in by_variant.items():
        both = sorted(of_variant.keys() & preset.keys())
        cells = []
        for figure in ("way", "following"):
            values = np.array([getattr(of_variant[name], figure) for name in both])
            differences = values - np.array([getattr(preset[name], figure) for name in both])
            cells.append(f"{values.mean():.3f}")
            cells.append("" if variant == PRESET else "{:+.3f} ± {:.3f}".format(*mean_and_margin(differences)))
        seconds = np.median([of_variant[name].seconds for name in both])
        yield f"| {variant} | {' | '.join(cells)} | {seconds:.0f} |"


def mean_and_margin(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of values and half its 95 % interval by Student's t."""
    count = len(values)
    if count < 2:
        return float(values.mean()), float("inf")
    t = stats.t.ppf((1 + LEVEL) / 2, count - 1)
    return float(values.mean()), float(t * values.std(ddof=1) / count**0.5)


def _outcome(
    base: Base,
    folder: Path,
    variant: str,
    changes: Mapping[str, str],
    kind: str,
    name: str,
    views: list[Subject],
    world: World,
) -> Outcome:
    pictures, class_word = folder / name, class_word_of(views[0])
    compose_pictures(pictures, name, views, world, masks=True)
    scorer = ImageScorer()
    yardstick = _yardstick(base, scorer, pictures, class_word)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"watch_every": "0", **_in_steps(changes, base.preset.steps)}
        request = TuneRequest(pictures, "<taught>", class_word, settings=settings)
        file = tune_folder(request, Path(scratch) / "taught.safetensors", work=Path(scratch) / "work", base=base)
        concept = read_concept(file)
    seconds = time.monotonic() - started
    drawn = _drawn(base, scorer, concept.name, concept.pairs, {concept.name: words_of(concept, base)})
    identity = image_alignment(drawn.flatten(0, 1), yardstick.references)
    following = context_alignment(drawn.mean(dim=0), yardstick.usual)
    way = (identity - yardstick.floor) / (yardstick.ceiling - yardstick.floor)
    return Outcome(variant, kind, name, way, following, seconds)


def _yardstick(base: Base, scorer: ImageScorer, pictures: Path, class_word: str) -> Yardstick:
    tuned_on, held_back = (load_pictures(some, base.picture_size) for some in split_pictures(pictures))
    references = scorer.features(held_back)
    usual = _drawn(base, scorer, f"a {class_word}", {}, {})
    rebuilt = base.decode_latents(base.encode_pictures(tuned_on))
    floor = image_alignment(usual.flatten(0, 1), references)
    return Yardstick(references, usual.mean(dim=0), floor, image_alignment(scorer.features(rebuilt), references))


def _drawn(
    base: Base, scorer: ImageScorer, subject: str, changes: Mapping[str, LowRank], words: Vocabulary
) -> torch.Tensor:
    """Return features by seed and context; within a seed all contexts share their noise."""
    prompts = [about(context, subject) for context in SCORED]
    with attached(base, changes):
        return torch.stack(
            [
                scorer.features(draw(base, prompts, [seed] * len(prompts), vocabulary=words, how=Drawing()))
                for seed in SEEDS
            ]
        )


def _in_steps(changes: Mapping[str, str], steps: int) -> dict[str, str]:
    relative = {"half": steps // 2, "double": 2 * steps}
    return {name: str(relative.get(value, value)) for name, value in changes.items()}


def _digest(base: Base, changes: Mapping[str, str]) -> str:
    code = digest_of_code(("mos_bench.tuning",))
    made_by = {"changes": dict(changes), "on": taught_on(base), "code": code, "seeds": SEEDS, "contexts": SCORED}
    return digest_of_json(made_by)[:12]


def run_tuning(out: Path, *, each: int, base: str, only: Sequence[str], part: int, parts: int) -> None:
    """Run `mos-bench tuning`.

    Raises:
        RequestError: there is no such part, or no change of such a name.

    """
    check_part(part, parts)
    if unknown := sorted(set(only) - VARIANTS.keys()):
        raise RequestError(f"--only {unknown[0]!r}: unknown change; known: {', '.join(VARIANTS)}")
    torch.set_num_threads(1 if parts > 1 else 2)
    measure(out, each=each, base_name=base, only=only, part=part, parts=parts)
