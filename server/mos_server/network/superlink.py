"""Flower's SuperLink embedded in the server's process, exposing only what participants need.

The stock `flower-superlink` offers every API on one port to anybody who connects: without any
credential they can start runs and take over the server's tasks. Here the same application serves
two listeners. The private one, on a free loopback port, is for the process that runs a round. The
public one is behind the gate. Flower's control API is closed on both, since the server calls its
functions directly. The modules used are internal to Flower, so its version is pinned.
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

# Uploads hold the write lock of Flower's database for seconds. With Flower's own limit of 5 s a
# push fails and the reply is lost.
_LOCK_WAIT_MS = "60000"
_GRACE_S = 1
# SuperNodes hold a few connections each and retry when they are refused.
_CONNECTIONS_AT_MOST = 512


@dataclass(frozen=True)
class Task:
    """A run that is waiting for its ServerApp: the address to report to, and the token to use."""

    run_id: int
    address: str
    token: str


class SuperLink:
    """One embedded SuperLink: registers nodes, starts runs, listens."""

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
        """The public port, which the gate guards."""
        return int(self._public.getsockname()[1])

    @property
    def private_address(self) -> str:
        """The address at which the process of a round reaches Flower."""
        return f"127.0.0.1:{self._private.getsockname()[1]}"

    def close(self) -> None:
        """Release the ports."""
        self._private.close()
        self._public.close()

    def register(self, pem: bytes, name: str) -> None:
        """Register a participant's key as a node. A registered key keeps its node."""
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.superlink.servicer.control.control_handlers import register_node

        link = self.link_state()
        if link.get_node_id_by_public_key(pem) is None:
            register_node(RegisterNodeRequest(public_key=pem, name=name), _account(), link)

    def unregister(self, pem: bytes) -> None:
        """Remove a participant's key from the nodes."""
        link = self.link_state()
        if (node := link.get_node_id_by_public_key(pem)) is not None:
            link.delete_node(_account().flwr_aid, node)

    def start_run(self) -> Task:
        """Start a run of the pointer app and claim its ServerApp, which the caller must start."""
        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.supercore.fab import Fab
        from flwr.superlink.servicer.control.control_handlers import start_run
        from flwr.superlink.servicer.runtime.runtime_handlers import acquire_task

        bundle, _ = build_app()
        link = self.link_state()
        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        run_id = start_run(StartRunRequest(fab=fab), _account(), link, None).run_id
        # Tasks of earlier runs whose process never started are taken off the queue here and expire.
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
                """Leave signals to the embedding process."""
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
                # SuperNodes keep connections open: without a limit they delay the shutdown by
                # half a minute.
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    def link_state(self) -> Any:
        """Return Flower's own record of nodes and runs."""
        return self._application.state.linkstate_factory.state()


def listening_address(host: str) -> str:
    """Return the address to listen on so that `host` is reachable.

    A loopback host is served on loopback only.
    """
    if host in ("localhost", "::1") or host.startswith("127."):
        return "127.0.0.1"
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104 - a server for other machines


def bind_port(address: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        NetworkError: the port is in use, or this user may not open it.

    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=256)
    except OSError as error:
        raise NetworkError(
            f"port {port} of {address} cannot be opened ({error.strerror}): stop what uses it "
            f"(ss -ltnp 'sport = :{port}'), or choose another in the state folder's config.json and send new kits"
        ) from error


async def _started(server: Any, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            await serving
            raise NetworkError("Flower's server ended while it started: see log/serve.log in the state folder")
        await asyncio.sleep(0.02)


def _create_application(state: State, private_port: int) -> Any:
    """Create Flower's ASGI application on the state folder's database."""
    import flwr.supercore.sql_mixin as sql
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app
    from sqlalchemy.exc import SQLAlchemyError

    # Flower's own logger writes every request to the console; send only its warnings to our log.
    flower_log = logging.getLogger("flwr")
    flower_log.handlers.clear()
    flower_log.propagate = True
    flower_log.setLevel(logging.WARNING)
    # Freed pages contained uploads: overwrite them.
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
        # Only this process claims tasks, without a port, so the secret is never shared.
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
            f"{config.database} cannot be used ({error.args[0]}): is the disk full or read-only? You may remove "
            "the file: a server then starts without it and asks the participants of a running round again"
        ) from error


def _account() -> Any:
    """Return the one account of Flower's open edition, to which nodes and runs belong."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    _, account = NoOpControlAuthnPlugin().validate_tokens_in_metadata(())
    return account


def _closed_control() -> Any:
    """Return an authentication plugin for Flower's control API that refuses every call."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    class ClosedControl(NoOpControlAuthnPlugin):
        def validate_tokens_in_metadata(self, metadata: Any) -> tuple[bool, None]:
            """Refuse every call."""
            return False, None

    return ClosedControl()
