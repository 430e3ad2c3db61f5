"""Every symbol of Flower that we use: an upgrade that takes one away fails here, by name."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mos_client
import mos_common
import mos_server
from mos_client.federation.supernode import PROGRAM
from mos_common.flower_app import FLOWER_ENVIRONMENT
from mos_server.network.fleet import KEY, SIGNATURE, TIME, FleetPort
from mos_server.network.runtime import TOKEN, RuntimePort


@dataclass(frozen=True)
class Call:
    """How we call something: with so many positional arguments, and these by name."""

    positional: int
    names: tuple[str, ...] = ()


def call(positional: int = 0, *names: str) -> Call:
    return Call(positional, names)


LIFESPAN = (
    "host",
    "port",
    "insecure",
    "certificates",
    "ssl_ca_certfile",
    "ssl_certfile",
    "ssl_keyfile",
    "database",
    "enable_supernode_auth",
    "isolation",
    "superexec_auth_secret",
    "authn_plugin",
    "runtime_dependency_install",
    "simulation",
    "control_address",
    "health_server_address",
    "fleet_api_type",
    "fleet_api_address",
    "artifact_provider",
    "event_log_plugin",
    "fleet_event_log_plugin",
    "enable_event_log",
)
RUN_SERVERAPP = (
    "runtime_api_address",
    "log_queue",
    "token",
    "insecure",
    "certificates",
    "parent_pid",
    "runtime_dependency_install",
)

# What we import, and how we call it; None where we only name it or read it.
IMPORTED: dict[str, Call | None] = {
    # public: records and messages, on both sides
    "flwr.app.Array": call(0, "dtype", "shape", "stype", "data"),
    "flwr.app.ArrayRecord": call(1),
    "flwr.app.message.array": None,
    "flwr.app.ConfigRecord": call(1),
    "flwr.app.Context": None,
    "flwr.app.Error": call(2),
    "flwr.app.Message": call(3, "ttl"),
    "flwr.app.MessageType": None,
    "flwr.app.MetricRecord": call(1),
    "flwr.app.RecordDict": call(1),
    # public: the apps
    "flwr.clientapp.ClientApp": call(),
    "flwr.serverapp.Grid": None,
    "flwr.serverapp.ServerApp": call(),
    "flwr.serverapp.strategy.Result": call(),
    "flwr.serverapp.strategy.Strategy": None,
    # common/mos_common/flower_app.py: the bundle
    "flwr.cli.build.build_fab_from_files": call(1),
    # client/mos_client/federation/executor.py: tasks of the local SuperNode
    "flwr.common.constant.ErrorCode": None,
    "flwr.common.constant.SubStatus": None,
    "flwr.proto.runtime_pb2.AcquireTaskRequest": call(0, "supported_task_types"),
    "flwr.proto.runtime_pb2.SendTaskHeartbeatRequest": call(),
    "flwr.supercore.auth.load_superexec_auth_secret": call(0, "secret_file"),
    "flwr.supercore.constant.TaskType": None,
    "flwr.supercore.heartbeat.HeartbeatSender": call(1),
    "flwr.supercore.interceptors.RuntimeTokenHttpInterceptor": call(1),
    "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": call(0, "component_name"),
    "flwr.supercore.interceptors.SuperExecAuthHttpInterceptor": call(0, "master_secret", "protected_methods"),
    "flwr.supercore.runtime.RuntimeHttpClient": None,
    "flwr.supernode.runtime.run_clientapp.pull_task_input": call(1),
    "flwr.supernode.runtime.run_clientapp.push_message": call(3),
    "flwr.supernode.runtime.run_clientapp.push_task_output": call(4),
    # server/mos_server/network/superlink.py: the embedded SuperLink
    "flwr.common.serde.fab_to_proto": call(1),
    "flwr.proto.control_pb2.RegisterNodeRequest": call(0, "public_key", "name"),
    "flwr.proto.control_pb2.StartRunRequest": call(0, "fab"),
    "flwr.supercore.fab.Fab": call(3),
    "flwr.supercore.sql_mixin": None,
    "flwr.superlink.auth_plugin.NoOpControlAuthnPlugin": call(),
    "flwr.superlink.cli.flower_superlink.SuperLinkLifespan": call(2),
    "flwr.superlink.config_loader.SuperLinkLifespanConfig": call(0, *LIFESPAN),
    "flwr.superlink.main.create_app": call(2),
    "flwr.superlink.routers.fleet.node_auth": None,
    "flwr.superlink.servicer.control.control_handlers.register_node": call(3),
    "flwr.superlink.servicer.control.control_handlers.start_run": call(4),
    "flwr.superlink.servicer.runtime.runtime_handlers.acquire_task": call(2),
    # server/mos_server/network/fleet.py: signatures, answers and their objects
    "flwr.common.constant.SYSTEM_TIME_TOLERANCE": None,
    "flwr.common.constant.TIMESTAMP_TOLERANCE": None,
    "flwr.proto.fleet_pb2.PushMessagesRequest": call(),
    "flwr.proto.message_pb2.PushObjectRequest": call(),
    "flwr.supercore.date.now": call(),
    "flwr.supercore.primitives.asymmetric.bytes_to_public_key": call(1),
    "flwr.supercore.primitives.asymmetric.public_key_to_bytes": call(1),
    "flwr.supercore.primitives.asymmetric.verify_signature": call(3),
    # server/mos_server/round/replies.py: one reply, fetched and decoded
    "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": call(0, "node", "run_id", "message_object_id"),
    "flwr.proto.message_pb2.ObjectTree": None,
    "flwr.proto.message_pb2.PullObjectRequest": call(0, "node", "run_id", "object_id"),
    "flwr.proto.runtime_pb2.PullAppMessagesRequest": call(0, "message_ids"),
    "flwr.supercore.inflatable.inflatable_object.get_object_body": call(2),
    "flwr.supercore.inflatable.inflatable_object.get_object_head_values_from_object_content": call(1),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": call(1),
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": call(2),
    "flwr.superlink.grid.HttpGrid": None,
    "flwr.supernode.cli.flower_supernode": None,
    "flwr.supercore.run.RunNotRunningException": None,
    "flwr.supernode.start_client_internal": None,
    # server/mos_server/round/app.py: the process of a round
    "flwr.superlink.runtime.run_serverapp": call(0, *RUN_SERVERAPP),
}

# What we reach through these. Methods count `self`.
REACHED: dict[str, Call | None] = {
    "flwr.app.Message.content": None,
    "flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": None,
    "flwr.app.Message.error": None,
    "flwr.app.Message.has_error": call(1),
    "flwr.app.Message.metadata": None,
    "flwr.app.MessageType.EVALUATE": None,
    "flwr.app.MessageType.TRAIN": None,
    "flwr.clientapp.ClientApp.evaluate": call(1),
    "flwr.clientapp.ClientApp.train": call(1),
    "flwr.clientapp.ClientApp.__call__": call(1, "message", "context"),
    "flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION": None,
    "flwr.common.constant.ErrorCode.INVALID_FAB": None,
    "flwr.common.constant.SubStatus.COMPLETED": None,
    "flwr.common.constant.SubStatus.FAILED": None,
    "flwr.server.superlink.linkstate.LinkState.delete_node": call(3),
    "flwr.server.superlink.linkstate.LinkState.get_node_id_by_public_key": call(2),
    "flwr.server.superlink.linkstate.SqlLinkState.get_valid_message_ins": call(2),
    "flwr.server.superlink.linkstate.LinkStateFactory.state": call(1),
    "flwr.serverapp.Grid.get_nodes": call(1),
    "flwr.serverapp.Grid.push_messages": call(2),
    "flwr.serverapp.ServerApp.main": call(1),
    "flwr.serverapp.strategy.Strategy.aggregate_evaluate": call(3),
    "flwr.serverapp.strategy.Strategy.aggregate_train": call(3),
    "flwr.serverapp.strategy.Strategy.configure_evaluate": call(5),
    "flwr.serverapp.strategy.Strategy.configure_train": call(5),
    "flwr.serverapp.strategy.Strategy.start": call(3),
    "flwr.serverapp.strategy.Strategy.summary": call(1),
    "flwr.supercore.constant.TaskType.CLIENT_APP": None,
    "flwr.supercore.constant.TaskType.SERVER_APP": None,
    "flwr.supercore.heartbeat.HeartbeatSender.start": call(1),
    "flwr.supercore.heartbeat.HeartbeatSender.stop": call(1),
    "flwr.supernode.start_client_internal.pull_objects": None,
    "flwr.supercore.runtime.RuntimeHttpClient.AcquireTask": call(2),
    "flwr.supercore.runtime.RuntimeHttpClient.SendTaskHeartbeat": call(2),
    "flwr.supercore.runtime.RuntimeHttpClient.close": call(1),
    "flwr.supercore.runtime.RuntimeHttpClient.from_server_address": call(
        0, "server_address", "insecure", "root_certificates", "interceptors"
    ),
    "flwr.supercore.sql_mixin.SQLITE_PRAGMAS": None,
    "flwr.superlink.routers.fleet.node_auth.TIMESTAMP_TOLERANCE": None,
    "flwr.superlink.auth_plugin.NoOpControlAuthnPlugin.validate_tokens_in_metadata": call(2),
    "flwr.superlink.grid.HttpGrid._runtime_client": None,
    "flwr.superlink.grid.HttpGrid.run": None,
    "flwr.supercore.runtime.RuntimeHttpClient.ConfirmMessageReceived": call(2),
    "flwr.supercore.runtime.RuntimeHttpClient.PullMessages": call(2),
    "flwr.supercore.runtime.RuntimeHttpClient.PullObject": call(2),
}

# What we write into Flower's protobuf messages, and read from them.
FIELDS = {
    "flwr.proto.control_pb2.RegisterNodeRequest": {"public_key", "name"},
    "flwr.proto.control_pb2.StartRunRequest": {"fab"},
    "flwr.proto.control_pb2.StartRunResponse": {"run_id"},
    "flwr.proto.fleet_pb2.PushMessagesRequest": {"messages_list", "message_object_trees", "clientapp_runtime_list"},
    "flwr.proto.message_pb2.Message": {"metadata", "content"},
    "flwr.proto.message_pb2.Metadata": {"message_id", "reply_to_message_id", "src_node_id"},
    "flwr.proto.message_pb2.ObjectTree": {"object_id", "children"},
    "flwr.proto.message_pb2.PushObjectRequest": {"object_id", "object_content"},
    "flwr.proto.node_pb2.NodeInfo": {"node_id", "public_key", "status"},
    "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": {"node", "run_id", "message_object_id"},
    "flwr.proto.message_pb2.PullObjectRequest": {"node", "run_id", "object_id"},
    "flwr.proto.message_pb2.PullObjectResponse": {"object_found", "object_available", "object_content"},
    "flwr.proto.runtime_pb2.PullAppMessagesRequest": {"message_ids"},
    "flwr.proto.runtime_pb2.PullAppMessagesResponse": {"messages_list", "message_object_trees"},
    "flwr.proto.runtime_pb2.AcquireTaskRequest": {"supported_task_types"},
    "flwr.proto.runtime_pb2.AcquireTaskResponse": {"task", "token"},
    "flwr.proto.runtime_pb2.SendTaskHeartbeatResponse": {"success"},
    "flwr.proto.task_pb2.Task": {"run_id"},
}

SUPERNODE_FLAGS = {
    "--superlink",
    "--root-certificates",
    "--auth-supernode-private-key",
    "--host",
    "--port",
    "--isolation",
    "--superexec-auth-secret-file",
    "--node-config",
}


def resolved(name: str) -> Any:
    """What `from package import name` gives: an attribute, else a module."""
    above, _, last = name.rpartition(".")
    try:
        thing: Any = importlib.import_module(above)
    except ModuleNotFoundError:
        thing = resolved(above)  # a class
    return getattr(thing, last) if hasattr(thing, last) else importlib.import_module(name)


def sources() -> list[Path]:
    packages = [Path(package.__file__).parent for package in (mos_client, mos_server, mos_common)]
    return [file for package in packages for file in package.rglob("*.py")]


def imported_from_flower(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "flwr"}
    return names


def test_every_import_from_flower_is_in_the_table():
    assert set().union(*map(imported_from_flower, sources())) == set(IMPORTED)


@pytest.mark.parametrize("name", [*IMPORTED, *REACHED])
def test_flower_has_what_we_use_and_takes_what_we_pass(name: str):
    thing, used = resolved(name), (IMPORTED | REACHED)[name]
    if used is None or hasattr(thing, "DESCRIPTOR"):
        return
    inspect.signature(thing).bind(*[None] * used.positional, **dict.fromkeys(used.names))


@pytest.mark.parametrize("name", FIELDS)
def test_flowers_protobuf_messages_have_the_fields_that_we_use(name: str):
    assert set(resolved(name).DESCRIPTOR.fields_by_name) >= FIELDS[name]


def test_records_say_whose_message_and_task_they_are():
    from flwr.app import Context, Error
    from flwr.app.metadata import Metadata
    from flwr.supercore.auth.typing import AccountInfo
    from flwr.supercore.run import Run

    for kind, names in (
        (Metadata, {"dst_node_id", "reply_to_message_id"}),
        (Error, {"code", "reason"}),
        (Context, {"node_config"}),
        (Run, {"fab_hash"}),
        (AccountInfo, {"flwr_aid"}),
    ):
        known = set(dir(kind)) | set(getattr(kind, "__annotations__", {}))
        assert names <= known, kind


def test_the_gate_knows_the_calls_and_headers_of_the_fleet_api():
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore import constant
    from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
    from flwr.superlink.main import create_app

    assert [KEY.decode(), TIME.decode(), SIGNATURE.decode()] == [
        constant.FLEET_HTTP_PUBLIC_KEY_HEADER,
        TIMESTAMP_HEADER,
        constant.FLEET_HTTP_SIGNATURE_HEADER,
    ]
    assert TOKEN.decode() == constant.TASK_TOKEN_HEADER
    versions = {name.encode() for name, _ in RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()}
    assert versions < FleetPort.passed & RuntimePort.passed | {KEY}
    assert set(create_app(None, None).openapi()["paths"]) >= {*FleetPort.calls, *RuntimePort.calls}


def test_the_supernode_takes_our_flags():
    """`--isolation process` is a mode of it; the flags are those in our source."""
    (file,) = (file for file in sources() if file.name == "supernode.py")
    words = {
        node.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--")
    }
    assert words == SUPERNODE_FLAGS
    shown = subprocess.run(
        [*PROGRAM, "--help"],
        env=os.environ | FLOWER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert [flag for flag in SUPERNODE_FLAGS if f"[{flag} " not in shown] == []
    assert "{subprocess,process}" in shown


def test_a_grid_has_the_node_and_the_run_that_a_reply_is_fetched_with():
    from flwr.superlink.grid import HttpGrid

    assert HttpGrid("127.0.0.1:1", insecure=True, token="t").node.node_id == 1


def test_an_arrays_object_names_its_pieces_as_a_reply_is_checked():
    """`round/replies.py` adds up the pieces that an array names before Flower joins them."""
    import json

    from flwr.app import Array
    from flwr.supercore.inflatable.inflatable_object import get_object_body

    body = get_object_body(Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"abc").deflate(), Array)
    assert json.loads(body)["arraychunk_ids"] == [0]


def test_flower_listens_to_the_environment_that_we_set():
    from flwr.common.constant import FLWR_HOME
    from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK
    from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED

    assert FLWR_HOME == "FLWR_HOME"
    assert set(FLOWER_ENVIRONMENT) == {FLWR_DISABLE_UPDATE_CHECK, "FLWR_TELEMETRY_ENABLED"}
    assert FLWR_TELEMETRY_ENABLED in ("0", "1")


def test_the_runtimes_call_is_named_as_the_executors_secret_protects_it():
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.runtime import RuntimeHttpClient

    class Names:
        def intercept(self, context: Any, call_next: object) -> None:
            raise LookupError(context.rpc_method)

    client = RuntimeHttpClient.from_server_address(
        server_address="127.0.0.1:1", insecure=True, root_certificates=None, interceptors=[Names()]
    )
    try:
        with pytest.raises(LookupError, match=r"^/flwr\.proto\.Runtime/AcquireTask$"):
            client.AcquireTask(AcquireTaskRequest())
    finally:
        client.close()
