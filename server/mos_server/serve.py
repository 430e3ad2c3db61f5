"""`mos-server serve`: serve both ports and run rounds until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack, closing
from logging.handlers import RotatingFileHandler
from pathlib import Path

from prometheus_client import CollectorRegistry

from mos_common.errors import StateError
from mos_common.files import could_not_write
from mos_common.outage import Outage
from mos_common.pages.serving import LOOPBACK
from mos_common.shell import say
from mos_server.monitoring.app import monitoring_port
from mos_server.monitoring.collector import Refused, StateCollector
from mos_server.monitoring.health import Health
from mos_server.network.door import Door
from mos_server.network.memory import collect_only_new, return_large_blocks
from mos_server.network.mos_port import mos_port
from mos_server.network.service import MosService
from mos_server.network.superlink import SuperLink, bind_port, listening_address
from mos_server.page.opening import PageOptions, opened_page
from mos_server.round.news import round_news
from mos_server.round.process import only_process
from mos_server.round.runner import RoundRunner
from mos_server.state.folder import State, locked
from mos_server.state.journal import Journal
from mos_server.state.pause import Pause, Unstored
from mos_server.state.recovery import tidy
from mos_server.tracing import check_installed

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_SEEN_EVERY_S = 15.0


def serve(
    state: State,
    listening: Callable[[], None],
    *,
    device: str | None = None,
    dtype: str | None = None,
    metrics_port: int | None = None,
    page: PageOptions | None = None,
    announce: Callable[[str], None] = log.info,
) -> None:
    """Serve a state folder until SIGTERM or SIGINT, and leave no process behind.

    `listening` is called once both ports answer. A round that is running resumes at the next start.
    `metrics_port` is a loopback port for metrics and health (0: any free one), `page` says how the
    operator's page is served; their addresses are announced.

    Raises:
        StateError: another server is running on the folder.
        NetworkError: a port is in use.
        RequestError: traces are asked for, and OpenTelemetry is not installed.

    """
    check_installed()
    return_large_blocks()
    with ExitStack() as stack:
        stack.enter_context(locked(state))
        journal = stack.enter_context(closing(Journal(state.database)))
        log_to_file(state)
        state.pki.complete()  # a rotation that was interrupted
        pause, unstored = Pause(state), Unstored(state)
        with only_process(state):
            tidy(state, journal)
        registry, health = CollectorRegistry(), Health(state, journal)
        superlink = SuperLink(
            state,
            admitted=journal.participants.is_admitted,
            saw=Seen(journal),
            unstored=unstored.report,
            refused=Refused(registry),
        )
        stack.callback(superlink.close)
        for participant in journal.participants.all():
            if participant.revoked is None:
                superlink.register(participant.pem, participant.name)
            else:
                superlink.unregister(participant.pem)
        listener = stack.enter_context(bind_port(listening_address(state.config.host), state.config.mos_port))
        door = Door(members=superlink.members)
        superlink.doors.append(door)  # a barred key is out at every door
        answers = MosService(state, journal, superlink.register, news=lambda: round_news(journal))
        service = mos_port(answers, state.pki, listener, door)
        collect_only_new()
        rounds = RoundRunner(state, journal, superlink, pause, unstored, device, dtype)
        if metrics_port is not None:
            registry.register(StateCollector(state, journal, health))
            port = stack.enter_context(monitoring_port(metrics_port, registry, health))
            announce(f"metrics: http://{LOOPBACK}:{port}/metrics; health: /healthz and /readyz there")
        if page is not None:
            stack.enter_context(opened_page(page, state, journal, health, announce))

        def ready() -> None:
            health.listening()
            listening()

        asyncio.run(_serve_both(service, superlink, rounds, ready, health))


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


class StateLog(RotatingFileHandler):
    """The log in the state folder, whose disk may be full: that is said once, on the console."""

    def __init__(self, file: Path, **rotation: int) -> None:
        super().__init__(file, **rotation)  # type: ignore[arg-type]
        self._unwritable = Outage(lambda line: say(line, error=True))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Report that a line could not be written."""
        error = sys.exception()
        if isinstance(error, OSError):
            self._unwritable.report(f"lines of the log are lost: {could_not_write(Path(self.baseFilename), error)}")
        else:
            super().handleError(record)


def log_to_file(state: State) -> None:
    """Write the log to the state folder as well.

    Raises:
        StateError: the log cannot be written.

    """
    try:
        handler = StateLog(state.log / "serve.log", maxBytes=10 << 20, backupCount=3)
    except OSError as error:
        raise could_not_write(state.log, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


async def _serve_both(
    service: AbstractAsyncContextManager[None],
    superlink: SuperLink,
    rounds: RoundRunner,
    listening: Callable[[], None],
    health: Health,
) -> None:
    async with service:
        await _serve(superlink, rounds, listening, health)


async def _serve(superlink: SuperLink, rounds: RoundRunner, listening: Callable[[], None], health: Health) -> None:
    asked_to_stop, ports_may_close = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    serving = asyncio.create_task(superlink.serve(ports_may_close, listening))
    try:
        while not asked_to_stop.is_set() and not serving.done():
            await asyncio.to_thread(rounds.step)
            health.stepped()
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
