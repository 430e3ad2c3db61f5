"""What Flower's SuperNode does otherwise in our process: a message of a run that ends is dropped.

The state and the objects are Flower's own; the server is replaced by functions.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import Status
from flwr.proto.task_pb2 import TaskStatus
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeStateFactory

from mos_client.federation.run_supernode import drop_messages_of_ended_runs
from mos_common.flower_app import build_app

RUN = 5


@pytest.fixture
def message() -> Message:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 7
    message = Message(RecordDict({"round": ConfigRecord({"n": 1})}), dst_node_id=7, message_type="train")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@pytest.fixture
def pull(message: Message, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[object, object, list[TaskStatus]]]:
    """Return a function that pulls the message with a server that answers `pull_object`."""
    monkeypatch.setattr(supernode, "pull_objects", supernode.pull_objects)
    monkeypatch.setattr(supernode, "get_fused_config_from_fab", lambda *_: {})
    drop_messages_of_ended_runs()
    bundle, digest = build_app()

    def pulled(pull_object: Callable[[int, str], bytes]):
        objects = ObjectStoreFactory(":memory:").store()
        state = NodeStateFactory(ObjectStoreFactory(":memory:")).state()
        state.set_node_id(7)
        run = Run.create_empty(RUN)
        run.fab_hash = digest
        supernode._pull_and_store_message(
            state=state,
            object_store=objects,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=lambda _: run,
            get_fab=lambda *_: Fab(digest, bundle, {}),
            pull_object=pull_object,
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )
        return state, objects, [task.status for task in state.get_tasks(run_ids=[RUN])]

    return pulled


def test_a_message_that_arrives_whole_has_a_task(pull, message):
    contents = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    state, objects, tasks = pull(lambda _, key: contents[key])
    assert [task.status for task in tasks] == [Status.PENDING]
    assert objects.get(message.object_id) == contents[message.object_id]
    assert len(state.get_messages_legacy(is_reply=False)) == 1


def test_of_a_message_whose_run_ends_while_it_arrives_nothing_is_left_to_wait_for(pull, message):
    def ended(*_: object) -> bytes:
        raise RunNotRunningException

    state, objects, tasks = pull(ended)
    assert [task.status for task in tasks] == [Status.FINISHED]
    assert objects.get(message.object_id) is None
    assert state.get_messages_legacy(is_reply=False) == []
