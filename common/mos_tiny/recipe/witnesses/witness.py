"""A witness answers one question about pictures; it is learnt from a lesson and can be kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from mos_common.files import write_atomically
from mos_tiny.recipe.witnesses.classifier import Classifier, Rule
from mos_tiny.recipe.witnesses.features import READERS, Pictures

Answer = Callable[[Pictures], list[str]]


@dataclass(frozen=True)
class Lesson:
    """Labelled pictures; `truths` has the value of each attribute, empty where it is not seen."""

    pictures: Pictures
    truths: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Witness:
    """The answer to one question: a classifier of one of the `READERS` of features."""

    reader: str
    classifier: Classifier

    @classmethod
    def learn(cls, lesson: Lesson, attribute: str, reader: str, rule: Rule) -> Witness:
        """Learn to name an attribute from the pictures of a lesson in which it is seen."""
        seen = [i for i, truth in enumerate(lesson.truths) if truth.get(attribute)]
        features = READERS[reader](lesson.pictures[seen])
        return cls(reader, rule(features, [lesson.truths[i][attribute] for i in seen]))

    def __call__(self, pictures: Pictures) -> list[str]:
        """Name the attribute in each picture."""
        return self.classifier.classify(READERS[self.reader](pictures))


def keep_witnesses(witnesses: Mapping[str, Witness], file: Path) -> None:
    """Write witnesses by question."""
    tensors, about = {}, {}
    for question, witness in witnesses.items():
        about[question] = json.dumps({"reader": witness.reader, "names": witness.classifier.names})
        tensors[f"{question}.mean"] = witness.classifier.mean.contiguous()
        tensors[f"{question}.weights"] = witness.classifier.weights.contiguous()
    write_atomically(file, save(tensors, about))


def kept_witnesses(file: Path) -> dict[str, Witness]:
    """Read the witnesses that `keep_witnesses` wrote."""
    witnesses = {}
    with safe_open(file, "pt") as opened:
        for question, text in opened.metadata().items():
            about = json.loads(text)
            mean, weights = (opened.get_tensor(f"{question}.{part}") for part in ("mean", "weights"))
            witnesses[question] = Witness(about["reader"], Classifier(about["names"], mean, weights))
    return witnesses
