"""A round's process and a participant's node, speaking to a running SuperLink through its ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_connection import http_request_response

from strangers import Node, Running


@contextmanager
def grid_of_a_round(running: Running) -> Iterator[HttpGrid]:
    """Start a round and be its process, which asks the participants' nodes."""
    task = running.superlink.start_run()
    grid = HttpGrid(task.address, False, running.state.pki.authority.read_bytes(), token=task.token)
    inputs = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = inputs.task_id, inputs.run.run_id
    TaskIdentity.node_id = inputs.context.node_id
    grid.set_run(run_from_proto(inputs.run))
    heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeats.start()
    yield grid
    heartbeats.stop()
    grid.close()


@dataclass
class Participant:
    """A participant's node that is online."""

    node: int
    receive: Callable[[], Any]
    send: Callable[[Message, Any, float], tuple[set[str], str]]
    push: Callable[[int, str, str, bytes], None]

    def asked(self) -> Message:
        """Return the question that waits for this node."""
        question, _ = self.receive()
        question.metadata.__dict__["_message_id"] = question.metadata.message_id
        return question

    def announce(self, answer: Message, *, tree: Any = None) -> tuple[dict[str, bytes], str]:
        """Send an answer without its objects; return them, and the session they are due in."""
        with no_object_id_recompute():
            answer.metadata.__dict__["_message_id"] = answer.object_id
            objects = {name: each.deflate() for name, each in get_all_nested_objects(answer).items()}
            _, session = self.send(answer, tree or get_object_tree(answer), 1.0)
        return objects, session

    def reply(self, question: Message, content: RecordDict) -> None:
        """Send a whole answer."""
        objects, session = self.announce(Message(content, reply_to=question))
        for name, data in objects.items():
            self.push(question.metadata.run_id, session, name, data)


@contextmanager
def online(port: int, authority: Path, key: Node) -> Iterator[Participant]:
    """Bring a node online, as a SuperNode does."""
    address, trusted = f"127.0.0.1:{port}", authority.read_bytes()
    with http_request_response(address, False, trusted, (key.key, key.key.public_key()), max_retries=0) as (
        node,
        receive,
        send,
        _,
        _,
        _,
        push,
        _,
    ):
        yield Participant(node, receive, send, push)


def ask(grid: HttpGrid, node: int, *, group: str = "") -> str:
    """Ask a node something. Earlier releases gave a question no group."""
    content = RecordDict({"round": ConfigRecord({"round": "round-001"})})
    question = Message(content, node, "train", ttl=600, group_id=group)
    (number,) = grid.push_messages([question])
    return str(number)
