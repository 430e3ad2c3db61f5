"""Flower's SuperLink, inside the server's own process, with nothing of it reachable that participants do not need.

The stock `flower-superlink` offers every API on one port to whoever connects: runs can be started and the server's tasks be
taken over without any credential. Here the same application serves two listeners. The private one, on a free loopback
port, is for the process that runs a round; the public one stands behind the gate. Flower's control API is closed on both:
the server calls its functions directly. The modules used are Flower's internal ones, which is why its version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mos_common.errors import NetworkError, StateError
from mos_common.flower_app import build_app, silence_flower
from mos_server.network.gate import Gate
from mos_server.state.folder import State

log = logging.getLogger(__name__)

# Uploads hold the write lock of Flower's database for seconds; with its own 5 s a push fails and the reply is lost.
_LOCK_WAIT_MS = "60000"
_GRACE_S = 1
# SuperNodes hold a few connections each and try again when they are turned away.
_CONNECTIONS_AT_MOST = 512


@dataclass(frozen=True)
class Task:
    """A run that waits for its ServerApp: where to report, and the token with which to do so."""

    run_id: int
    address: str
    token: str


class SuperLink:
    """One embedded SuperLink: knows nodes, starts runs, listens."""

    def __init__(self, state: State, *, admitted: Callable[[str], bool], saw: Callable[[str], None]) -> None:
        self._pki = state.pki
        self._private = bind_port("127.0.0.1", 0)
        self._public = bind_port(listening_address(state.config.host), state.config.fleet_port)
        silence_flower()
        os.environ["FLWR_HOME"] = str(state.flower)
        self._application = _create_application(state, self._private.getsockname()[1])
        self._gate = Gate(self._application, admitted=admitted, saw=saw)

    @property
    def public_port(self) -> int:
        """The port behind which the gate stands."""
        return int(self._public.getsockname()[1])

    @property
    def private_address(self) -> str:
        """Where the process of a round reaches Flower."""
        return f"127.0.0.1:{self._private.getsockname()[1]}"

    def close(self) -> None:
        """Give the ports back."""
        self._private.close()
        self._public.close()

    def register(self, pem: bytes, name: str) -> None:
        """Let a participant's key be a node; a key that is one already stays the same node."""
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.superlink.servicer.control.control_handlers import register_node

        link = self._link_state()
        if link.get_node_id_by_public_key(pem) is None:
            register_node(RegisterNodeRequest(public_key=pem, name=name), _account(), link)

    def unregister(self, pem: bytes) -> None:
        """Let a participant's key be a node no more."""
        link = self._link_state()
        if (node := link.get_node_id_by_public_key(pem)) is not None:
            link.delete_node(_account().flwr_aid, node)

    def start_run(self) -> Task:
        """Start a run of the pointer app and claim its ServerApp, which the caller has to start."""
        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.supercore.fab import Fab
        from flwr.superlink.servicer.control.control_handlers import start_run
        from flwr.superlink.servicer.runtime.runtime_handlers import acquire_task

        bundle, _ = build_app()
        link = self._link_state()
        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        run_id = start_run(StartRunRequest(fab=fab), _account(), link, None).run_id
        # Tasks of earlier runs whose process never came are taken out of the queue here, and expire.
        while (claimed := acquire_task(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]), link)).token:
            if claimed.task.run_id == run_id:
                return Task(run_id, self.private_address, claimed.token)
        raise NetworkError("Flower did not start the round: see log/serve.log in the state folder")

    async def serve(self, stop: asyncio.Event, listening: Callable[[], None]) -> None:
        """Listen until `stop` is set; `listening` is called once both ports answer."""
        private = self._server(self._application, lifespan="on")
        public = self._server(self._gate, lifespan="off")
        serving = [asyncio.create_task(private.serve([self._private]))]
        try:
            await _started(private, serving[0])
            serving.append(asyncio.create_task(public.serve([self._public])))
            await _started(public, serving[1])
            listening()
            await stop.wait()
        finally:
            private.should_exit = public.should_exit = True
            await asyncio.gather(*serving, return_exceptions=True)
            self.close()

    def _server(self, application: Any, *, lifespan: str) -> Any:
        import uvicorn

        class Server(uvicorn.Server):
            def capture_signals(self) -> contextlib.AbstractContextManager[None]:
                """Leave signals to the process that embeds us."""
                return contextlib.nullcontext()

        return Server(
            uvicorn.Config(
                application,
                lifespan=lifespan,
                ws="none",
                ssl_certfile=str(self._pki.certificate),
                ssl_keyfile=str(self._pki.key),
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS_AT_MOST,
                # SuperNodes keep connections open; without a limit they hold the shutdown for half a minute.
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    def _link_state(self) -> Any:
        return self._application.state.linkstate_factory.state()


def listening_address(host: str) -> str:
    """Where to listen so that `host` is reached: a loopback host is for this machine alone."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return "127.0.0.1"
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104 - a server for other machines


def bind_port(address: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        NetworkError: somebody else has the port, or this user may not have it.

    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=256)
    except OSError as error:
        raise NetworkError(
            f"port {port} of {address} cannot be opened ({error.strerror}): stop what uses it (ss -ltnp 'sport = :{port}'), "
            "or choose another in the state folder's config.json and send new kits"
        ) from error


async def _started(server: Any, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            await serving
            raise NetworkError("Flower's server ended while it started: see log/serve.log in the state folder")
        await asyncio.sleep(0.02)


def _create_application(state: State, private_port: int) -> Any:
    """Flower's ASGI application on the state folder's database."""
    import flwr.supercore.sql_mixin as sql
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app
    from sqlalchemy.exc import SQLAlchemyError

    # Flower's logger writes every request to the console by itself; its warnings go where ours go.
    flower_log = logging.getLogger("flwr")
    flower_log.handlers.clear()
    flower_log.propagate = True
    flower_log.setLevel(logging.WARNING)
    # Freed pages held uploads: overwrite them.
    ours = {"busy_timeout": _LOCK_WAIT_MS, "secure_delete": "ON"}
    sql.SQLITE_PRAGMAS = tuple({**dict(sql.SQLITE_PRAGMAS), **ours}.items())
    pki = state.pki
    files = (pki.authority, pki.certificate, pki.key)
    config = SuperLinkLifespanConfig(
        host="127.0.0.1",
        port=private_port,
        insecure=False,
        certificates=tuple(file.read_bytes() for file in files),
        ssl_ca_certfile=str(pki.authority),
        ssl_certfile=str(pki.certificate),
        ssl_keyfile=str(pki.key),
        database=str(state.flower / "superlink.db"),
        enable_supernode_auth=True,
        # Nobody but this process claims tasks, and it does so without a port: the secret is never told to anybody.
        isolation="process",
        superexec_auth_secret=secrets.token_bytes(32),
        authn_plugin=_closed_control(),
        runtime_dependency_install=False,
        simulation=False,
        control_address="127.0.0.1:0",
        health_server_address=None,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        artifact_provider=None,
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
    )
    try:
        return create_app(config, SuperLinkLifespan)
    except SQLAlchemyError as error:
        raise StateError(
            f"{config.database} cannot be used ({error.args[0]}): is the disk full or read-only? Without that file a server "
            "starts as well, and only forgets a running round's questions"
        ) from error


def _account() -> Any:
    """The one account that Flower knows without its enterprise edition; nodes and runs belong to it."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    _, account = NoOpControlAuthnPlugin().validate_tokens_in_metadata(())
    return account


def _closed_control() -> Any:
    """An authentication of Flower's control API that nobody passes."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    class ClosedControl(NoOpControlAuthnPlugin):
        def validate_tokens_in_metadata(self, metadata: Any) -> tuple[bool, None]:
            """Refuse every call."""
            return False, None

    return ClosedControl()
