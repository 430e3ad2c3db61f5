"""Flower's SuperLink embedded in the server's process, exposing only what participants need.

The stock `flower-superlink` offers every API on one port to anybody who connects: without any
credential they can start runs and take over the server's tasks. Here the same application serves
two listeners, each behind a door and a gate. The private one, on a free loopback port, is for the
process that runs a round. Flower's control API is closed on both, since the server calls its
functions directly. The modules used are internal to Flower, so its version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import resource
import secrets
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from mos_common.errors import MosError, NetworkError, StateError
from mos_common.flower_app import build_app, silence_flower
from mos_common.node_key import key_digest
from mos_common.outage import Outage
from mos_server.network.database import PRAGMAS, keep_small
from mos_server.network.door import Door, Limits
from mos_server.network.fleet import REQUEST_S_AT_MOST, FleetPort
from mos_server.network.gate import Gate
from mos_server.network.http_protocol import http_protocol
from mos_server.network.runtime import RuntimePort
from mos_server.network.tls import ServerTls
from mos_server.state.folder import State

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_PROTOCOL = "http/1.1"
_FILES = 8192
# The process of a round asks through a pool of connections.
_PRIVATE = Limits(per_key=64)


@dataclass(frozen=True)
class Task:
    """A run that is waiting for its ServerApp: the address to report to, and the token to use."""

    run_id: int
    address: str
    token: str


class SuperLink:
    """One embedded SuperLink: registers nodes, starts runs, listens."""

    def __init__(
        self,
        state: State,
        *,
        admitted: Callable[[str], bool],
        saw: Callable[[str], None],
        unstored: Callable[[str], None],
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        """`saw`, `unstored` and `refused` are the gate's."""
        self._public_tls = ServerTls(state.pki, _PROTOCOL)
        # The process of a round trusts the authorities that there are when it starts.
        self._private_tls = ServerTls(state.pki, _PROTOCOL)
        self._private = bind_port("127.0.0.1", 0)
        self._public = bind_port(listening_address(state.config.host), state.config.fleet_port)
        silence_flower()
        os.environ["FLWR_HOME"] = str(state.flower)
        self._application = _create_application(state, self._private.getsockname()[1])
        self._admitted = admitted
        self._registered: dict[str, bytes] = {}
        self._database = state.flower / "superlink.db"
        self._runtime, self._private_door = RuntimePort(), Door(_PRIVATE)
        self._private_gate = Gate(
            self._application,
            self._runtime,
            self._private_door,
            spool=state.flower,
            unstored=unstored,
            hourly_bytes=math.inf,
        )
        public_door = Door(members=self.members)
        self.doors = [public_door]
        self._public_door = public_door
        self._gate = Gate(
            self._application,
            FleetPort(admitted, self.link_state),
            public_door,
            spool=state.flower,
            unstored=unstored,
            saw=saw,
            refused=refused,
        )

    @property
    def public_port(self) -> int:
        """The public port, which the gate guards."""
        return int(self._public.getsockname()[1])

    @property
    def private_address(self) -> str:
        """The address at which the process of a round reaches Flower."""
        return f"127.0.0.1:{self._private.getsockname()[1]}"

    def members(self) -> int:
        """Return how many keys are admitted."""
        return len(self._registered)

    def close(self) -> None:
        """Release the ports."""
        self._private.close()
        self._public.close()

    def register(self, pem: bytes, name: str) -> None:
        """Register a participant's key as a node. A registered key keeps its node."""
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.superlink.servicer.control.control_handlers import register_node

        self._registered[key_digest(pem)] = pem
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

        self._private_tls.renew()
        bundle, _ = build_app()
        link = self.link_state()
        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        run_id = start_run(StartRunRequest(fab=fab), _account(), link, None).run_id
        # Tasks of earlier runs whose process never started are taken off the queue here and expire.
        while (claimed := acquire_task(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]), link)).token:
            if claimed.task.run_id == run_id:
                self._runtime.admit(claimed.token)
                return Task(run_id, self.private_address, claimed.token)
        raise NetworkError("Flower did not start the round: see log/serve.log in the state folder")

    async def serve(self, stop: asyncio.Event, listening: Callable[[], None]) -> None:
        """Listen until `stop` is set; `listening` is called once both ports answer."""
        _raise_file_limit()
        async with (
            self._lifespan(),
            self._private_door.listening(
                self._private, lambda: self._private_tls.context, http_protocol(self._private_gate)
            ),
            self._public_door.listening(self._public, self._public_tls.latest, http_protocol(self._gate)),
        ):
            looking = asyncio.create_task(self._look_after())
            try:
                listening()
                await stop.wait()
            finally:
                looking.cancel()
        self.close()

    def _lifespan(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return Flower's own start and end as a context."""
        return self._application.router.lifespan_context(self._application)  # type: ignore[no-any-return]

    async def _look_after(self) -> None:
        """Shut out keys that were barred, and give the disk space of earlier rounds back."""
        trouble = Outage(lambda line: log.error("%s", line), patience_s=60)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                for key in await asyncio.to_thread(self._unregister_barred):
                    for door in self.doors:
                        door.bar(key)
                await asyncio.to_thread(keep_small, self._database)
                trouble.over("barred keys and Flower's database are looked after again")
            except (MosError, SQLAlchemyError, sqlite3.Error, OSError) as error:
                trouble.report(f"barred keys and Flower's database cannot be looked after: {error}")

    def _unregister_barred(self) -> list[str]:
        barred = [key for key in list(self._registered) if not self._admitted(key)]
        for key in barred:
            self.unregister(self._registered[key])
            del self._registered[key]
            log.info("key %s is barred", key[:12])
        return barred

    def link_state(self) -> Any:
        """Return Flower's own record of nodes and runs."""
        return self._application.state.linkstate_factory.state()


def _raise_file_limit() -> None:
    """Allow this process as many sockets as the system lets it: the usual 1024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _FILES) if most > 0 else _FILES, most))


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
        return socket.create_server((address, port), family=family, backlog=1024)
    except OSError as error:
        raise NetworkError(
            f"port {port} of {address} cannot be opened ({error.strerror}): stop what uses it "
            f"(ss -ltnp 'sport = :{port}'), or choose another in the state folder's config.json and send new kits"
        ) from error


def _create_application(state: State, private_port: int) -> Any:
    """Create Flower's ASGI application on the state folder's database."""
    import flwr.supercore.sql_mixin as sql
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app
    from flwr.superlink.routers.fleet import node_auth

    # Flower's own logger writes every request to the console; send only its warnings to our log.
    flower_log = logging.getLogger("flwr")
    flower_log.handlers.clear()
    flower_log.propagate = True
    flower_log.setLevel(logging.WARNING)
    # A line for every request that is no HTTP would let strangers fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    sql.SQLITE_PRAGMAS = tuple({**dict(sql.SQLITE_PRAGMAS), **PRAGMAS}.items())
    # Flower checks the signed time when the body has come, which takes long on a slow line; we
    # have checked it before.
    node_auth.TIMESTAMP_TOLERANCE = REQUEST_S_AT_MOST
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
