"""How well a base can be taught: identities that it never saw, tuned as the main job tunes them.

Each identity is scored against two held-back pictures: the base's drawings of the class word
(floor), the tuned concept's drawings (single), and its own pictures through the VAE (ceiling).
`way` is (single - floor)/(ceiling - floor).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mos_bench.pictures import compose_pictures
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.tune_folder import tune_folder
from mos_common.base_model import Base, load_base
from mos_common.concept_file import read_concept
from mos_common.digests import digest_of_code, digest_of_json, modules_of
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.fingerprint import sampler_of
from mos_common.identity import probe_for, score_ceiling, score_class_word, score_single
from mos_common.scores import ImageScorer
from mos_common.shell import say
from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.kept import KINDS, kept_subjects

WANTED = 0.8
# The code that decides a tuned concept and its score: when it changes, both are made again.
TAUGHT_BY = (
    *(*modules_of("mos_client.tuning"), *modules_of("mos_client.pictures")),
    *(
        f"mos_common.{name}"
        for name in [
            "attention",
            "base_loading",
            "base_model",
            "concept",
            "conditioning",
            "drawing",
            "edlora",
            "identity",
            "layers",
            "prompt_grammar",
            "prompt_names",
            "samplers",
            "weighted_text",
            "words",
            "written_prompts",
        ]
    ),
    *("mos_common.prompts", "mos_common.scores", "mos_bench.pictures", "mos_bench.teach"),
    *(f"mos_tiny.recipe.{name}" for name in ["art", "compose", "demonstration", "kept", "restyle", "scenes"]),
    *(f"mos_tiny.recipe.{name}" for name in ["sprites", "wider", "world"]),
)


def taught_on(base: Base) -> dict[str, object]:
    """Return what a score depends on besides the identity and the settings."""
    return {
        "base": base.fingerprint,
        "sampler": sampler_of(base.scheduler),
        "zeros": base.force_zeros_for_empty_prompt,
        "preset": asdict(base.preset),
        "number format": str(base.dtype),
        "code": digest_of_code(TAUGHT_BY),
    }


@dataclass(frozen=True)
class Taught:
    """One identity's scores: cosines with its held-back pictures."""

    kind: str
    name: str
    class_word: str
    floor: float
    single: float
    ceiling: float

    @property
    def way(self) -> float:
        """How far from the class word to its own pictures tuning came."""
        return (self.single - self.floor) / (self.ceiling - self.floor)


def teach(out: Path, *, each: int, base_name: str, steps: int | None, part: int, parts: int) -> list[Taught]:
    """Tune and score `each` identities of every kind, and write `out`/teach.json.

    Scores already measured on the same base are kept. `part` of `parts` tunes only its share, so
    that several processes divide the work.
    """
    base = load_base(base_name)
    folder = out / base.fingerprint[:12] / f"steps-{steps or base.preset.steps}"
    key = digest_of_json(taught_on(base))[:12]
    world, results = World(), []
    for i, (kind, name, views) in enumerate(chosen(each)):
        done = folder / f"{name}-{key}.json"
        if not done.is_file() and i % parts == part:
            taught = _taught(base, folder, kind, name, views, steps, world)
            write_atomically(done, json.dumps(asdict(taught)).encode())
        if done.is_file():
            results.append(Taught(**json.loads(done.read_bytes())))
            say(_line(results[-1]))
    summary = {
        "base": base.fingerprint,
        "wanted": WANTED,
        "identities": [asdict(taught) | {"way": taught.way} for taught in results],
    }
    write_atomically(out / "teach.json", json.dumps(summary, indent=1).encode() + b"\n")
    for kind in KINDS:
        ways = [taught.way for taught in results if taught.kind == kind]
        if ways:
            say(f"{kind}: {np.mean(ways):.2f} of the way on average over {len(ways)}, wanted {WANTED}")
    return results


def chosen(each: int) -> Iterator[tuple[str, str, list[Subject]]]:
    """Yield identities evenly spaced over each kind."""
    for kind in KINDS:
        subjects = kept_subjects(kind)
        for i in range(each):
            views = subjects[i * len(subjects) // each]
            label = views[0].label
            yield kind, f"{label['style']}-{label.get('id', label.get('icon'))}".lower(), views


def _taught(
    base: Base, folder: Path, kind: str, name: str, views: list[Subject], steps: int | None, world: World
) -> Taught:
    pictures = folder / name
    compose_pictures(pictures, name, views, world)
    class_word = class_word_of(views[0])
    request = TuneRequest(pictures, "<taught>", class_word, steps=steps)
    file = tune_folder(request, folder / f"{name}.safetensors", work=folder / f"{name}.work", base=base)
    tuned_on, held_back = (load_pictures(chosen, base.picture_size) for chosen in split_pictures(pictures))
    concept = read_concept(file)
    probe = probe_for(base, concept, held_back, ImageScorer(str(base.device)))
    floor, single = score_class_word(probe, concept), score_single(probe, concept)
    return Taught(kind, name, class_word, floor, single, score_ceiling(probe, tuned_on))


def class_word_of(view: Subject) -> str:
    """Return the class word that a participant would use."""
    if view.person:
        return "person"
    return str(view.label.get("noun", "thing"))


def check_part(part: int, parts: int) -> None:
    """Check the share of the work that a process is to do.

    Raises:
        RequestError: there is no such part; it would do nothing.

    """
    if not 0 <= part < parts:
        raise RequestError(f"--part {part} with --parts {parts}: expected a part from 0 to {parts - 1}")


def _line(taught: Taught) -> str:
    return (
        f"{taught.kind:>14} {taught.name:>24}  floor {taught.floor:.3f}  single {taught.single:.3f}  "
        f"ceiling {taught.ceiling:.3f}  way {taught.way:.2f}"
    )


def run_teach(out: Path, *, each: int, base: str, steps: int | None, part: int, parts: int) -> None:
    """Run `mos-bench teach`.

    Raises:
        RequestError: there is no such part.

    """
    check_part(part, parts)
    torch.set_num_threads(1 if parts > 1 else 2)
    teach(out, each=each, base_name=base, steps=steps, part=part, parts=parts)
