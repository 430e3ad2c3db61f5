"""Follow the operator's rotations: fetch statements, pin them, and move with the server.

A participant who is joined asks every few seconds, so that it knows the new anchors before the
server presents them. Statements that do not go on from what is pinned are refused and named.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from mos_client.federation.calling import CALL_S, calling, explained
from mos_client.federation.enrolment import Enrolment
from mos_client.federation.news import fetch_news
from mos_client.federation.pinning import adopt
from mos_common import mos_pb2
from mos_common.errors import MosError, NetworkError, TrustError
from mos_common.kit import Kit, write_kit
from mos_common.node_key import sign_call
from mos_common.rotation import Statement, read_statements
from mos_common.trust import KIT, Pins

log = logging.getLogger(__name__)
EVERY_S = 10.0
Say = Callable[[str], None]


def followed(enrolment: Enrolment, state: Path, say: Say) -> Enrolment:
    """Return the membership with the anchors and addresses of today, and keep them.

    Raises:
        TrustError: the server sends statements that do not go on from what is pinned.
        NetworkError: the server cannot be reached at any address that is known.
        StateError: the state folder cannot be written.

    """
    kit, statements = _fetched(enrolment)
    pins = Pins(enrolment.participant, enrolment.kit.anchors)
    try:
        pins = adopt(state, pins, statements)
    except TrustError as error:
        raise TrustError(
            f"the server at {kit.mos} was refused, {error}. Nothing that it said of its keys was taken: ask the operator"
        ) from error
    kit = kit.with_anchors(pins.anchors)
    for statement in pins.anchors.statements[len(enrolment.kit.statements) :]:
        say(f"the operator rotated the federation's keys on {statement.time:%Y-%m-%d %H:%M} UTC; signed as it must be")
    if (kit.mos, kit.fleet) != (enrolment.kit.mos, enrolment.kit.fleet):
        say(f"the server has moved to {kit.mos} and {kit.fleet}, as the operator announced")
    if kit != enrolment.kit:
        write_kit(kit, state / KIT)
    return replace(enrolment, kit=kit)


def _fetched(enrolment: Enrolment) -> tuple[Kit, tuple[Statement, ...]]:
    """Return the statements of the server, and the kit whose address answered."""
    kit = enrolment.kit
    try:
        return kit, _call(enrolment, kit)
    except NetworkError:
        moved = _moved(kit)
        if moved == kit:
            raise
        return moved, _call(enrolment, moved)


def _moved(kit: Kit) -> Kit:
    """Return the kit at the addresses that were announced last."""
    if not kit.statements:
        return kit
    last = kit.statements[-1]
    return kit.model_copy(update={"fleet": last.fleet, "mos": last.mos})


def _call(enrolment: Enrolment, kit: Kit) -> tuple[Statement, ...]:
    request = mos_pb2.TrustRequest()
    try:
        with calling(kit) as stub:
            answer = stub.Trust(request, metadata=sign_call(enrolment.key, "Trust", request), timeout=CALL_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return kit.statements  # a server of an earlier release, whose keys never change
        raise explained(error, kit) from error
    return read_statements(list(answer.statements))


@dataclass
class Follower:
    """Keeps a membership up to date in a thread. `changed` is set whenever it has changed."""

    enrolment: Enrolment
    state: Path
    say: Say
    every_s: float = EVERY_S
    changed: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _refused: str = ""

    @contextmanager
    def running(self) -> Iterator[Follower]:
        """Follow within the block."""
        thread = threading.Thread(target=self._run, name="follower", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()

    def look(self) -> Enrolment:
        """Ask once, and return the membership as it is then; the server may be away."""
        with self._lock:
            try:
                now = followed(self.enrolment, self.state, self.say)
            except MosError as error:
                self._report(error)
                return self.enrolment
            self._refused = ""
            if now != self.enrolment:
                self.enrolment = now
                self.changed.set()
            return now

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            with suppress(MosError):  # others say that the server is away, or the disk full
                fetch_news(self.enrolment, self.state)
            self._stop.wait(self.every_s)

    def _report(self, error: MosError) -> None:
        """Say a refusal once; that the server is away, others say."""
        if isinstance(error, NetworkError) or str(error) == self._refused:
            return
        self._refused = str(error)
        log.warning("%s", error)
