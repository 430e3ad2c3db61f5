"""Read what raters sent, and leave out those who did not look.

A file of answers comes from a stranger's browser, often by way of a mail program: it is believed
only where it fits the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_bench.study.trials import QUESTIONS, RIGHT, Key, Trial, read_document
from mos_common.errors import RequestError

NEITHER = "neither"
LEAST_CAUGHT = 0.8
LONGEST_NAME = 64
ADVICE = "ask the rater to send the file again, or tally without it"


@dataclass(frozen=True)
class Rater:
    """One rater's answers: for each trial and question the method that was chosen, or `NEITHER`."""

    name: str
    file: Path
    chosen: dict[tuple[str, str], str]

    def caught(self, catches: Sequence[Trial]) -> tuple[int, int]:
        """Return how many questions of catch trials were answered rightly, of how many."""
        answers = [self.chosen[trial.trial, question] for trial in catches for question in QUESTIONS]
        return answers.count(RIGHT), len(answers)


@dataclass(frozen=True)
class Sorted:
    """The raters that count, and those who do not, with what they caught."""

    kept: list[Rater]
    excluded: list[tuple[Rater, int, int]]


def read_answers(path: Path, key: Key) -> Rater:
    """Read one rater's file.

    Raises:
        RequestError: it cannot be read, is of another study, or is not complete.

    """
    document = read_document(path, ADVICE)
    if document.get("study") != key.study:
        raise RequestError(f"{path} answers another study than the key's, {key.study}: give both of one study")
    name, answers = document.get("rater"), document.get("answers")
    if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isalnum()) or not isinstance(
        answers, list
    ):
        raise RequestError(f"{path} is damaged: it names no rater, or lists no answers; {ADVICE}")
    trials, chosen = {trial.trial: trial for trial in key.trials}, dict[tuple[str, str], str]()
    for answer in answers:
        given = answer.get("trial") if isinstance(answer, dict) else None
        trial = trials.get(given) if isinstance(given, str) else None
        if trial is None or (trial.trial, QUESTIONS[0]) in chosen:
            raise RequestError(f"{path} is damaged: trial {given!r} is unknown or answered twice; {ADVICE}")
        for question in QUESTIONS:
            choice = answer.get(question)
            if not isinstance(choice, str) or choice not in {*trial.pictures, NEITHER}:
                raise RequestError(f"{path} is damaged: trial {trial.trial} has no valid answer {question!r}; {ADVICE}")
            chosen[trial.trial, question] = trial.pictures.get(choice, NEITHER)
    if missing := len(trials) - len(chosen) // len(QUESTIONS):
        raise RequestError(f"{path} is not complete: {missing} of {len(trials)} trials have no answer; {ADVICE}")
    return Rater(name, path, chosen)


def sort_raters(raters: Sequence[Rater], key: Key, least: float = LEAST_CAUGHT) -> Sorted:
    """Return who answered at least `least` of the catch trials' questions rightly, and who did not.

    Raises:
        RequestError: two files are of one rater.

    """
    files: dict[str, Path] = {}
    for rater in raters:
        if (other := files.setdefault(rater.name, rater.file)) != rater.file:
            raise RequestError(f"{other} and {rater.file} are both of rater {rater.name}: leave one of them out")
    sorted_ = Sorted([], [])
    catches = [trial for trial in key.trials if trial.catch]
    for rater in raters:
        right, asked = rater.caught(catches)
        if right < least * asked:
            sorted_.excluded.append((rater, right, asked))
        else:
            sorted_.kept.append(rater)
    return sorted_
