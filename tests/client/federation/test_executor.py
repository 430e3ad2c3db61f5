"""The executor runs the installed ClientApp and never code that came over the wire.

The SuperNode's local interface is replaced by one in this process; messages, records and bundles
are Flower's own.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_to_proto, fab_to_proto, message_from_proto, message_to_proto, run_to_proto
from flwr.proto import message_pb2, runtime_pb2, task_pb2
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from mos_client.federation.executor import Executor
from mos_common.errors import StateError, TrustError
from mos_common.flower_app import POINTER, build_app

SECRET = b"0123456789abcdef0123456789abcdef"
EVIL = 'from pathlib import Path\nPath("{mark}").write_text("pwned")\napp = None\n'


def answers(message: Message, context: Context) -> Message:
    return Message(RecordDict({"said": ConfigRecord({"text": "the installed app"})}), reply_to=message)


class SuperNode:
    """The SuperNode's local interface with one task in it."""

    def __init__(self, bundle: bytes, told_digest: str | None = None) -> None:
        self.bundle, self.digest = bundle, told_digest or hashlib.sha256(bundle).hexdigest()
        self.tasks = ["token"]
        self.answer: Message | None = None
        self.output: runtime_pb2.PushTaskOutputRequest | None = None
        self.asked_for: list[str] = []
        self.closed = 0
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
        self.message = Message(RecordDict({"round": ConfigRecord({})}), dst_node_id=7, message_type="train")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.objects = {key: value.deflate() for key, value in get_all_nested_objects(self.message).items()}

    def AcquireTask(self, request):
        self.asked_for += request.supported_task_types
        if not self.tasks:
            return runtime_pb2.AcquireTaskResponse()
        return runtime_pb2.AcquireTaskResponse(task=task_pb2.Task(), token=self.tasks.pop())

    def PullTaskInput(self, request):
        context = Context(1, 7, {}, RecordDict(), {})
        run = Run.create_empty(1)
        run.fab_hash = self.digest
        fab = Fab(self.digest, self.bundle, {})
        return runtime_pb2.PullTaskInputResponse(
            context=context_to_proto(context), run=run_to_proto(run), fab=fab_to_proto(fab), task_id=1
        )

    def PullMessages(self, request):
        return runtime_pb2.PullAppMessagesResponse(
            messages_list=[message_to_proto(self.message)], message_object_trees=[get_object_tree(self.message)]
        )

    def PullObject(self, request):
        content = self.objects[request.object_id]
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(self, request):
        self.answer = message_from_proto(request.messages_list[0])
        return runtime_pb2.PushAppMessagesResponse(session_id="session")

    def PushObject(self, request):
        return message_pb2.PushObjectResponse(stored=True)

    def PushTaskOutput(self, request):
        self.output = request
        return runtime_pb2.PushTaskOutputResponse()

    def SendTaskHeartbeat(self, request):
        return runtime_pb2.SendTaskHeartbeatResponse(success=True)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def secret_file(tmp_path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path / "secret"


@pytest.fixture
def execute(monkeypatch, secret_file, tmp_path) -> Callable[..., SuperNode]:
    """Return a function that lets an executor with `app` take the task of `node`."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))

    def once(node: SuperNode, app: Callable[..., object] = answers, *, checks_digest: bool = True) -> SuperNode:
        executor = Executor(lambda: "127.0.0.1:9", secret_file, app)
        monkeypatch.setattr(executor, "_client", lambda interceptor: node)
        if not checks_digest:
            executor._bundle_digest = node.digest
        assert executor.take_task()
        assert not executor.take_task()
        return node

    return once


@pytest.fixture
def evil_bundle(tmp_path) -> bytes:
    """A bundle with a mos_client package of its own and a component that its pointer names."""
    code = EVIL.format(mark=tmp_path / "PWNED").encode()
    files = {
        "mos_client/__init__.py": code,
        "mos_client/federation/app.py": code,
        "evil/__init__.py": code,
        "evil.py": code,
    }
    pointer = POINTER.replace("mos_client.federation.app:app", "evil:app").replace(
        'fab-include = ["pyproject.toml"]', 'fab-include = ["pyproject.toml", "**/*.py"]'
    )
    return build_fab_from_files({"pyproject.toml": pointer.encode(), **files})[0]


def no_trace(tmp_path: Path, modules: set[str]) -> None:
    assert not (tmp_path / "PWNED").exists()
    assert not (tmp_path / "flower").exists()
    assert not [name for name in set(sys.modules) - modules if "evil" in name]
    assert "mos_client" in str(Path(sys.modules["mos_client"].__file__).parent)
    assert not any("flower" in entry and str(tmp_path) in entry for entry in sys.path)


def test_the_installed_app_answers(execute):
    node = execute(SuperNode(build_app()[0]))
    assert node.answer is not None
    assert not node.answer.has_error()
    assert node.output.details == ""
    assert node.closed == 3  # asked, worked, asked


def test_only_requests_to_the_client_app_are_taken(execute):
    assert set(execute(SuperNode(build_app()[0])).asked_for) == {"flwr-clientapp"}


def test_a_bundle_with_code_is_refused_and_leaves_no_trace(execute, evil_bundle, tmp_path):
    modules = set(sys.modules)
    node = execute(SuperNode(evil_bundle), lambda **given: pytest.fail("was called"))
    assert node.answer.error.code == 7  # INVALID_FAB
    assert str(tmp_path) not in node.answer.error.reason
    no_trace(tmp_path, modules)


def test_a_bundle_with_code_under_the_right_digests_name_is_refused(execute, evil_bundle, tmp_path):
    modules = set(sys.modules)
    node = execute(SuperNode(evil_bundle, told_digest=build_app()[1]), lambda **given: pytest.fail("was called"))
    assert node.answer.error.code == 7
    no_trace(tmp_path, modules)


def test_without_the_digest_check_it_is_the_installed_app_that_answers_still(execute, evil_bundle, tmp_path):
    modules = set(sys.modules)
    node = execute(SuperNode(evil_bundle), checks_digest=False)
    assert not node.answer.has_error()
    no_trace(tmp_path, modules)


@pytest.mark.parametrize("bundle", [b"", b"PK\x03\x04", b"\0" * 100_000])
def test_what_is_no_bundle_is_refused(execute, bundle):
    assert execute(SuperNode(bundle)).answer.error.code == 7


@pytest.mark.parametrize(
    "error", [TrustError("/home/alice/private"), OSError(2, "no", "/home/alice/private"), KeyError("/home/alice")]
)
def test_the_operator_is_told_the_kind_of_an_error_only(execute, caplog, error):
    def fails(**given: object) -> None:
        raise error

    with caplog.at_level(logging.ERROR):
        node = execute(SuperNode(build_app()[0]), fails)
    assert (node.answer.error.code, node.answer.error.reason) == (2, type(error).__name__)
    assert node.output.details == type(error).__name__
    assert "/home" not in str(node.output)
    assert "/home/alice" in caplog.text  # our own log has the full error


def test_a_task_that_was_given_up_meanwhile_does_not_interrupt_us(execute, monkeypatch):
    """After a machine has slept, Flower's own heartbeat would send this process a SIGINT."""
    beaten, interrupted = threading.Event(), []
    before = signal.signal(signal.SIGINT, lambda *given: interrupted.append(given))

    class GivenUp(SuperNode):
        def SendTaskHeartbeat(self, request):
            beaten.set()
            return runtime_pb2.SendTaskHeartbeatResponse(success=False)

    def waits(**given: object) -> Message:
        assert beaten.wait(10)
        return answers(**given)

    try:
        node = execute(GivenUp(build_app()[0]), waits)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not node.answer.has_error()
    assert interrupted == []


def test_a_heartbeat_that_is_refused_ends_nothing(execute):
    beaten = threading.Event()

    class Restarted(SuperNode):
        def SendTaskHeartbeat(self, request):
            beaten.set()
            raise httpx.HTTPStatusError("401", request=None, response=SimpleNamespace(status_code=401))

    def waits(**given: object) -> Message:
        assert beaten.wait(10)
        time.sleep(0.1)
        return answers(**given)

    assert not execute(Restarted(build_app()[0]), waits).answer.has_error()


@pytest.mark.parametrize("where", ["PullTaskInput", "PullMessages", "PushMessages", "PushTaskOutput"])
def test_a_supernode_that_goes_away_in_the_middle_is_survived(execute, where):
    node = SuperNode(build_app()[0])

    def gone(request: object) -> None:
        raise httpx.ConnectError("gone")

    setattr(node, where, gone)
    assert execute(node).closed == 3


class Looks:
    """Counts the checks of the SuperNode, and stops after a number of them."""

    def __init__(self, stop: threading.Event, outcomes: list[object]) -> None:
        self.stop, self.outcomes, self.count = stop, outcomes, 0

    def __call__(self) -> bool:
        self.count += 1
        if self.count > len(self.outcomes):
            self.stop.set()
            return False
        outcome = self.outcomes[self.count - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("mos_client.federation.executor._PAUSE_S", 0.01)


def test_a_supernode_that_is_starting_or_gone_is_asked_again(secret_file, impatient):
    """Nothing listens at port 9; then there is no secret yet; then no SuperNode at all."""
    stop = threading.Event()
    looks = Looks(stop, [True, True, False, True])
    Executor(lambda: "127.0.0.1:9", secret_file, answers).run(stop, looks)
    assert looks.count == 5
    secret_file.unlink()
    stop.clear()
    looks = Looks(stop, [True, True])
    Executor(lambda: "127.0.0.1:9", secret_file, answers).run(stop, looks)
    assert looks.count == 3


def test_a_supernode_that_cannot_be_started_is_said_and_tried_again(secret_file, impatient, caplog):
    stop = threading.Event()
    looks = Looks(stop, [StateError("the disk is full"), OSError("no more processes"), False])
    Executor(lambda: "127.0.0.1:9", secret_file, answers).run(stop, looks)
    assert looks.count == 4
    assert "the disk is full" in caplog.text
