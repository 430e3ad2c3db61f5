"""Ask participants and take their answers one at a time, as they arrive.

An answer is handed over as soon as it arrives, and the next one is fetched when the first has been
processed. So at most one upload is in memory, and uploads that were spooled before a crash are not
requested again. Answers get lost (a client restarts, an upload fails once), and a lost answer is
requested again; clients keep what they made and answer at once.

`Nodes` is all that a round needs of the network; `mos_server.round.flower_nodes` implements it with
Flower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from mos_common.identity_scores import Identity
from mos_common.round_requests import EvaluateRequest, TrainRequest
from mos_server.state.records import Participant

ATTEMPTS = 3


@dataclass(frozen=True)
class Polling:
    """Polling and retry intervals, in seconds.

    pause_s: between two polls for answers.
    retry_s: before a lost answer is requested again, times the number of answers lost so far.
    back_soon_s: how long to wait for a participant who went offline before scoring. A client that
        was killed and started again is back within it: it tries to come online again and again,
        after pauses that double, and is refused until Flower takes its node for offline.
    """

    pause_s: float = 1.0
    retry_s: float = 5.0
    back_soon_s: float = 90.0


@dataclass(frozen=True)
class Lost:
    """No answer to this question will come; it may be asked again."""

    reason: str


@dataclass(frozen=True)
class Unusable:
    """An answer of the wrong kind or form; asking again would bring the same."""

    reason: str


@dataclass(frozen=True)
class NoScores:
    """The participant cannot score, for a reason that will not pass in this round."""

    reason: str


_LINE = 300


def one_line(text: str) -> str:
    """Return a stranger's text as one line of at most 300 characters, of those that print."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * _LINE]).split())
    return line if len(line) <= _LINE else f"{line[:_LINE]}…"


@dataclass(frozen=True)
class WithOwn:
    """A concept file's bytes, and its participant agrees that its own changes are published."""

    data: bytes


Request = TrainRequest | EvaluateRequest
# A concept file's bytes answer a TrainRequest, an Identity or NoScores an EvaluateRequest.
Answer = bytes | WithOwn | Identity | NoScores | Unusable


@dataclass(frozen=True)
class Question:
    """One request to one participant, at the node where they are online.

    It expires after `valid_s` seconds.
    """

    node: int
    participant: Participant
    request: Request
    valid_s: float


class Nodes(Protocol):
    """The participants' machines, as a round sees them."""

    def online(self) -> Mapping[int, str]:
        """Return the nodes that are online: number -> digest of the node's key."""

    def ask(self, question: Question) -> str | None:
        """Send a question and return its id, or None if it was not accepted."""

    def answer(self, question_id: str) -> Answer | Lost | None:
        """Return the answer to one question, once; None while it has not arrived."""


class Exchange:
    """One kind of question to many participants, with the answers, losses and retries.

    `questions` yields the questions that are due: one for each participant who is online and has
    yet to answer. It is called at every poll, so that late joiners are asked too.
    `asked(participant)` and `lost(participant, reason, attempts)` are called when that happens.
    """

    def __init__(
        self,
        nodes: Nodes,
        questions: Callable[[Nodes], Iterable[Question]],
        *,
        asked: Callable[[Participant], None],
        lost: Callable[[Participant, str, int], None],
        polling: Polling,
    ) -> None:
        self._nodes = nodes
        self._questions = questions
        self._asked = asked
        self._lost = lost
        self._polling = polling
        self._waiting: dict[str, Question] = {}
        self._attempts: dict[int, int] = {}
        self._retry_at: dict[int, float] = {}
        self._due = True
        self._busy_until = self._answered = time.monotonic()

    @property
    def waited_for(self) -> list[str]:
        """The names of those who were asked and have not answered, sorted."""
        return sorted(question.participant.name for question in self._waiting.values())

    @property
    def silent_s(self) -> float:
        """The number of seconds since the last answer arrived, or since it was begun."""
        return time.monotonic() - self._answered

    @property
    def idle(self) -> bool:
        """True if no participant is waited for and none is left to ask."""
        return not self._waiting and not self._due

    @property
    def idle_s(self) -> float:
        """The number of seconds for which it has been idle."""
        return time.monotonic() - self._busy_until if self.idle else 0.0

    def answers(self, finished: Callable[[], bool]) -> Iterator[tuple[Participant, Answer]]:
        """Yield answers as they arrive, until `finished`.

        The next answer is fetched when the caller asks for it.
        """
        while not finished():
            self._ask()
            yield from self.arrived()
            if not self.idle:
                self._busy_until = time.monotonic()
            if not finished():
                time.sleep(self._polling.pause_s)

    def arrived(self) -> Iterator[tuple[Participant, Answer]]:
        """Yield the answers that have arrived by now, each with the participant who was asked."""
        for question_id, question in list(self._waiting.items()):
            answer = self._nodes.answer(question_id)
            if answer is None:
                continue
            self._waiting.pop(question_id, None)
            if isinstance(answer, Lost):
                self._give_up(question, answer.reason)
            else:
                self._answered = time.monotonic()
                yield question.participant, answer

    def _ask(self) -> None:
        self._due = False
        waited_for = {question.node for question in self._waiting.values()}
        for question in self._questions(self._nodes):
            node = question.node
            if node in waited_for or self._attempts.get(node, 0) >= ATTEMPTS:
                continue
            if time.monotonic() < self._retry_at.get(node, 0.0):
                self._due = True
                continue
            if question_id := self._nodes.ask(question):
                self._waiting[question_id] = question
                self._asked(question.participant)
            else:
                self._give_up(question, "the question was not accepted")

    def _give_up(self, question: Question, reason: str) -> None:
        attempts = self._attempts[question.node] = self._attempts.get(question.node, 0) + 1
        self._retry_at[question.node] = time.monotonic() + self._polling.retry_s * attempts
        self._due = True
        self._lost(question.participant, reason, attempts)
