"""`mos-server serve`: serve both ports and run rounds until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from logging.handlers import RotatingFileHandler

from mos_common.errors import StateError
from mos_common.files import could_not_write
from mos_common.outage import Outage
from mos_server.network.service import MosService, start_service
from mos_server.network.superlink import SuperLink, listening_address
from mos_server.round.runner import RoundRunner
from mos_server.state.folder import State, locked
from mos_server.state.journal import Journal

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_SEEN_EVERY_S = 15.0
_SERVICE_GRACE_S = 1.0


def serve(state: State, listening: Callable[[], None], *, device: str | None = None, dtype: str | None = None) -> None:
    """Serve a state folder until SIGTERM or SIGINT, and leave no process behind.

    `listening` is called once both ports answer. A round that is running resumes at the next start.

    Raises:
        StateError: another server is running on the folder.
        NetworkError: a port is in use.

    """
    with ExitStack() as stack:
        stack.enter_context(locked(state))
        journal = stack.enter_context(closing(Journal(state.database)))
        log_to_file(state)
        superlink = SuperLink(state, admitted=journal.participants.is_admitted, saw=Seen(journal))
        stack.callback(superlink.close)
        for participant in journal.participants.all():
            if participant.revoked is None:
                superlink.register(participant.pem, participant.name)
            else:
                superlink.unregister(participant.pem)
        address = f"{listening_address(state.config.host)}:{state.config.mos_port}"
        service, _ = start_service(MosService(state, journal, superlink.register), state, address)
        stack.callback(lambda: service.stop(_SERVICE_GRACE_S).wait())
        asyncio.run(_serve(superlink, RoundRunner(state, journal, superlink, device, dtype), listening))


class Seen:
    """Record when each participant was last seen, without a write for every Flower request."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._last: dict[str, float] = {}
        self._unwritable = Outage(lambda line: log.error("%s", line))

    def __call__(self, key: str) -> None:
        """Record that the participant with this key has just been seen."""
        now = time.monotonic()
        if now - self._last.get(key, -_SEEN_EVERY_S) >= _SEEN_EVERY_S:
            self._last[key] = now
            try:
                self._journal.participants.saw(key)
                self._unwritable.over("who is here can be recorded again")
            except StateError as error:
                self._unwritable.report(f"who is here cannot be recorded, trying again at every request: {error}")


def log_to_file(state: State) -> None:
    """Write the log to the state folder as well.

    Raises:
        StateError: the log cannot be written.

    """
    try:
        handler = RotatingFileHandler(state.log / "serve.log", maxBytes=10 << 20, backupCount=3)
    except OSError as error:
        raise could_not_write(state.log, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


async def _serve(superlink: SuperLink, rounds: RoundRunner, listening: Callable[[], None]) -> None:
    asked_to_stop, ports_may_close = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    serving = asyncio.create_task(superlink.serve(ports_may_close, listening))
    stuck = Outage(lambda line: log.error("%s", line))
    try:
        while not asked_to_stop.is_set() and not serving.done():
            try:
                await asyncio.to_thread(rounds.step)
                stuck.over("rounds go on")
            except StateError as error:  # a full disk may have room at the next step
                stuck.report(f"rounds stand still, trying again every {_LOOK_EVERY_S:g} s: {error}")
            await _wait(asked_to_stop, _LOOK_EVERY_S)
    finally:
        # The process of a round reports its end through the private port: close that port last.
        await asyncio.to_thread(rounds.stop)
        ports_may_close.set()
        await serving


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
