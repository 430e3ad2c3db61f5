"""A study with pictures of noise: two methods on three concepts, and two catch trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.study.assembly import Assembly, Cell, Real
from mos_bench.study.page import write_study
from mos_bench.study.trials import QUESTIONS, Key, random_name

METHODS = ("gradient", "average")
PEOPLE = [BenchConcept(name, "woman", "people, own style", "drawn") for name in ("<ann>", "<eve>")]
CONCEPTS = [*PEOPLE, BenchConcept("<oak>", "tree", "objects", "drawn")]


def noise(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def assembly_of(concepts=CONCEPTS, methods=METHODS) -> Assembly:
    """Return one trial for each concept."""
    texts = ("V in </script> the city", "V in the snow")
    assembly = Assembly({c.name: Real(noise(1), list(zip(texts, noise(2), strict=True))) for c in concepts})
    for concept in concepts:
        assembly.add(Cell(concept, texts[0], 0, 0), methods, list(noise(2)))
    return assembly


def study_of(out: Path, catches: int = 2) -> Key:
    """Write a study, and return its key."""
    assembly = assembly_of()
    assembly.add_catches(CONCEPTS, catches)
    key = Key(random_name(), METHODS, tuple(assembly.trials), {})
    write_study(out, key, assembly.shown, assembly.pictures)
    return key


def answer_file(path: Path, key: Key, choose, rater: str = "abc123") -> Path:
    """Write answers as the page does; `choose(trial, question)` returns a method or "neither"."""
    answers = []
    for trial in key.trials:
        names = {method: name for name, method in trial.pictures.items()}
        chosen = {question: names.get(choose(trial, question), "neither") for question in QUESTIONS}
        answers.append({"trial": trial.trial, "left": min(trial.pictures), **chosen})
    path.write_text(json.dumps({"study": key.study, "rater": rater, "answers": answers}))
    return path


@pytest.fixture
def study(tmp_path):
    """(folder, key) of a small study."""
    return tmp_path / "study", study_of(tmp_path / "study")
