"""Ask participants and take their answers one at a time, as they arrive.

Flower's own way returns a list when everybody has answered. Here an answer is handed over as soon as it is there, and the
next one is only fetched when the first has been dealt with: at most one upload is in memory, and what was spooled before a
crash needs no second asking. Flower loses answers (a client that restarts, an upload that fails once), so lost ones are
asked for again; clients keep what they made and answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

ATTEMPTS = 3


class Exchange:
    """One kind of question to many nodes: whom it was put to, who answered, who was lost.

    `questions` gives the messages that would be sent at this moment, one for each node that is here and still has to answer;
    it is called again and again, so that late joiners are asked too. `asked(message, node)` and `lost(node, reason, attempts)`
    are told what happens.
    """

    def __init__(
        self,
        grid: Grid,
        questions: Callable[[], Iterable[Message]],
        *,
        asked: Callable[[str, int], None],
        lost: Callable[[int, str, int], None],
        pause_s: float = 1.0,
        retry_s: float = 5.0,
    ) -> None:
        self._grid = grid
        self._questions = questions
        self._asked = asked
        self._lost = lost
        self._pause_s = pause_s
        self._retry_s = retry_s
        self._waiting: dict[str, int] = {}
        self._attempts: dict[int, int] = {}
        self._retry_at: dict[int, float] = {}
        self._due = True
        self._busy_until = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether there is nobody to wait for and nobody to ask."""
        return not self._waiting and not self._due

    @property
    def idle_s(self) -> float:
        """For how many seconds it has been idle."""
        return time.monotonic() - self._busy_until if self.idle else 0.0

    def answers(self, finished: Callable[[], bool]) -> Iterator[Message]:
        """Answers as they arrive, until `finished`. The next one is fetched when the caller asks for it."""
        while not finished():
            self._ask()
            yield from self.arrived()
            if not self.idle:
                self._busy_until = time.monotonic()
            if not finished():
                time.sleep(self._pause_s)

    def arrived(self) -> Iterator[Message]:
        """The answers that are there at this moment."""
        for identifier, node in list(self._waiting.items()):
            for reply in self._grid.pull_messages([identifier]):
                self._waiting.pop(identifier, None)
                # Who answers is known from what was asked, never from what an answer says of itself.
                if reply.has_error():
                    self._give_up(node, f"error {reply.error.code}, {reply.error.reason}")
                elif reply.metadata.reply_to_message_id != identifier:
                    self._give_up(node, "it answered another question")
                else:
                    yield reply

    def _ask(self) -> None:
        self._due = False
        for message in self._questions():
            node = message.metadata.dst_node_id
            if node in self._waiting.values() or self._attempts.get(node, 0) >= ATTEMPTS:
                continue
            if time.monotonic() < self._retry_at.get(node, 0.0):
                self._due = True
                continue
            identifier = next(iter(self._grid.push_messages([message])), None)
            if identifier:
                self._waiting[identifier] = node
                self._asked(identifier, node)
            else:
                self._give_up(node, "Flower did not take the question")

    def _give_up(self, node: int, reason: str) -> None:
        attempts = self._attempts[node] = self._attempts.get(node, 0) + 1
        self._retry_at[node] = time.monotonic() + self._retry_s * attempts
        self._due = True
        self._lost(node, reason, attempts)
