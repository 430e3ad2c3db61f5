"""Whatever an admitted participant sends costs it its answer, and the round goes on."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from flwr.app import MessageType
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from end_to_end.fleet import honest_answer
from end_to_end.hostile import LOST, OF_ANOTHER_TREE, REFUSED, SILENT
from mos_common import messages
from mos_common.identity_scores import Identity
from mos_common.round_requests import TrainRequest
from mos_server import admission
from mos_server.round import replies
from mos_server.round.exchange import Polling, Question, one_line
from mos_server.round.flower_nodes import FlowerNodes
from mos_server.round.strategy import GradientFusion
from mos_server.state.records import PUBLISHED, RoundSettings
from reference.flower_grid import MemoryGrid, MemoryRuntime

SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
POLLING = Polling(pause_s=0.01, retry_s=0.0, back_soon_s=0.05)


@pytest.fixture(autouse=True)
def _within_a_run(monkeypatch):
    """Flower makes messages only within a run of its own."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


def run_round(federation, *, train=None, evaluate=None, **settings) -> MemoryGrid:
    """Run a round of alice, who is honest, and mallory, who answers by these kinds."""

    def answers(name: str, kinds: dict):
        file = federation.file(name="<cat>" if name == "alice" else "<dog>")
        honest = {
            # Flower keeps equal objects once: two people's numbers differ.
            MessageType.TRAIN: messages.upload_content(messages.Upload(file, float(len(name)))),
            MessageType.EVALUATE: messages.identity_content(SCORES),
        }

        def answer(message):
            content, kind = honest[message.metadata.message_type], kinds.get(message.metadata.message_type)
            return content if kind is None else lambda question: kind(question, content)

        return federation.machine(name).pem, "online", answer

    hostile = {MessageType.TRAIN: train, MessageType.EVALUATE: evaluate}
    grid = MemoryGrid({7: answers("alice", {}), 8: answers("mallory", hostile)})
    name = federation.ask(**{"wait": 1, "min_identity": None} | settings)
    GradientFusion(federation.state, federation.journal, name, federation.base, POLLING).start(grid)
    return grid


def asked(grid: MemoryGrid, kind: str) -> int:
    """How often mallory was asked."""
    return [(each.metadata.dst_node_id, each.metadata.message_type) for each in grid.sent].count((8, kind))


# One fusion takes half a second or more: all kinds are refused in one test, and one round is fused.
@pytest.mark.parametrize("kind", REFUSED.values(), ids=REFUSED)
def test_an_answer_that_cannot_be_used_is_refused_by_name_and_not_asked_for_again(federation, monkeypatch, kind):
    monkeypatch.setattr("mos_server.round.engine.fuse_candidate", lambda *_: pytest.skip("it would be fused"))
    with pytest.raises(pytest.skip.Exception, match="it would be fused"):
        run_round(federation, train=kind)
    (refused,) = federation.refusals("round-001").items()
    assert refused[0] == "mallory"
    assert refused[1].isprintable()
    assert len(refused[1]) <= 301
    assert [upload.token for upload in federation.admitted("round-001")] == ["<alice/cat>"]
    assert len([text for text in federation.notes("round-001") if text.startswith("mallory: upload refused: ")]) == 1


@pytest.mark.parametrize("kind", LOST.values(), ids=LOST)
def test_an_error_is_asked_for_three_times_and_its_text_is_one_line(federation, kind):
    grid = run_round(federation, train=kind)
    assert federation.status("round-001") == PUBLISHED
    assert asked(grid, MessageType.TRAIN) == 3
    assert all(text.isprintable() and len(text) < 500 for text in federation.notes("round-001") if "mallory" in text)


@pytest.mark.parametrize("kind", ["an undecodable body", "10,000 objects", "numbers that are not finite"])
def test_scores_that_cannot_be_used_are_refused_and_the_concept_stays(federation, kind):
    grid = run_round(federation, evaluate=REFUSED[kind], wait=2)
    assert federation.status("round-001") == PUBLISHED
    assert federation.tokens("round-001") == ["<alice/cat>", "<mallory/dog>"]
    scores = {each.participant: each.identity for each in federation.model("round-001").manifest.concepts}
    assert scores == {"alice": SCORES, "mallory": None}
    assert asked(grid, MessageType.EVALUATE) == 1
    assert [text for text in federation.notes("round-001") if text.startswith("mallory: scores refused: ")]


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
def test_an_answer_that_never_becomes_whole_costs_the_grace_and_not_the_deadline(federation, kind):
    run_round(federation, train=kind, grace_s=1.0)
    assert federation.status("round-001") == PUBLISHED
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert "going on without mallory: no answer for 1s (--grace)" in federation.notes("round-001")


def test_an_answer_of_which_nothing_more_comes_is_lost(federation, monkeypatch):
    monkeypatch.setattr(replies, "STALLS_S", 0.05)
    grid = run_round(federation, train=SILENT["half of its objects"])
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert asked(grid, MessageType.TRAIN) == 3
    assert [text for text in federation.notes("round-001") if text.startswith("mallory: no answer (only 5 of its 6 ")]


def test_an_answer_that_comes_piece_by_piece_is_taken(federation):
    """The reply is looked at while its objects come, one at a time and the last one first."""
    content = messages.upload_content(messages.Upload(federation.file(name="<dog>"), 1.0))
    late: dict[str, bytes] = {}

    def slowly(question, _content):
        answer = honest_answer(question, content)
        late.update(answer.objects)
        return dataclasses.replace(answer, objects={})

    grid = MemoryGrid({8: (federation.machine("bob").pem, "online", lambda _: lambda q: slowly(q, None))})
    nodes = FlowerNodes(grid)
    person = federation.journal.participants.all()[0]
    question_id = nodes.ask(Question(8, person, TrainRequest("round-001", federation.base.fingerprint), 60.0))
    for object_id, data in reversed(list(late.items())):
        assert nodes.answer(question_id) is None
        grid._runtime_client.objects[object_id] = data
    assert nodes.answer(question_id) == messages.read_upload(content).data
    assert len(grid._runtime_client.confirmed) == 1


def test_what_has_too_many_objects_is_refused_before_any_is_fetched(federation):
    grid = run_round(federation, train=REFUSED["10,000 objects"])
    assert grid._runtime_client.pulled < 50
    assert "has 10002 objects: expected at most 136" in federation.refusals("round-001")["mallory"]


def test_an_answer_that_names_the_objects_of_another_message_is_refused(federation):
    run_round(federation, train=OF_ANOTHER_TREE)
    assert federation.refusals("round-001") == {"mallory": "its objects belong to another message"}


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), SystemError(), KeyError("x")])
def test_whatever_is_raised_while_an_answer_is_decoded_is_that_answers_loss(federation, monkeypatch, error):
    real = replies.decode
    hostile = iter([False, True])

    def decode(fetched):
        if next(hostile, False):
            raise error
        return real(fetched)

    monkeypatch.setattr("mos_server.round.flower_nodes.decode", decode)
    run_round(federation)
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert federation.refusals("round-001") == {"mallory": f"it cannot be decoded ({type(error).__name__})"}


@pytest.mark.parametrize("error", [MemoryError(), DecodeError("too deep"), RecursionError()])
def test_a_reply_that_cannot_even_be_fetched_is_that_answers_loss(federation, monkeypatch, error):
    def fetched(self, question_id):
        if question_id == "message-1":
            raise error
        return real(self, question_id)

    real = replies.Replies._claimed
    monkeypatch.setattr(replies.Replies, "_claimed", fetched)
    run_round(federation)
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert federation.refusals("round-001") == {"mallory": f"it cannot be fetched ({type(error).__name__})"}


def test_replies_that_cannot_be_decoded_together_are_looked_at_one_by_one(federation, monkeypatch):
    """One of them is to blame, and it is not the one that was looked for first."""

    def pull(self, request):
        if any(grid_sent[int(each.removeprefix("message-"))] == 8 for each in request.message_ids):
            raise DecodeError("too deep")
        return real(self, request)

    real, ask, grid_sent = MemoryRuntime.PullMessages, MemoryGrid.push_messages, []

    def push(self, sent):
        sent = list(sent)
        grid_sent.extend(each.metadata.dst_node_id for each in sent)
        return ask(self, sent)

    monkeypatch.setattr(MemoryRuntime, "PullMessages", pull)
    monkeypatch.setattr(MemoryGrid, "push_messages", push)
    run_round(federation)
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert federation.refusals("round-001") == {"mallory": "it cannot be fetched (DecodeError)"}


@pytest.mark.parametrize(("status", "asked_for"), [(500, 3), (413, 1)])
def test_a_reply_that_flower_cannot_hand_over_is_lost_or_refused(federation, monkeypatch, status, asked_for):
    def claimed(self, question_id):
        if self._grid.sent[int(question_id.removeprefix("message-"))].metadata.dst_node_id == 8:
            httpx.Response(status, request=httpx.Request("POST", "https://127.0.0.1")).raise_for_status()
        return real(self, question_id)

    real = replies.Replies._claimed
    monkeypatch.setattr(replies.Replies, "_claimed", claimed)
    grid = run_round(federation)
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert asked(grid, MessageType.TRAIN) == asked_for


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory"), RecursionError()])
def test_whatever_is_raised_while_a_concept_file_is_read_is_that_files_loss(federation, monkeypatch, error):
    real = admission.admit

    def admit(data, base):
        if concept_of(data) == "<dog>":
            raise error
        return real(data, base)

    monkeypatch.setattr("mos_server.admission.admit", admit)
    run_round(federation)
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert type(error).__name__ in federation.refusals("round-001")["mallory"]


def concept_of(data: bytes) -> str:
    return "<dog>" if b"<dog>" in data else "<cat>"


def test_a_strangers_text_is_one_printable_line():
    assert one_line("a\n\x1b[31mb\u202ec\u2028d") == "a [31mb c d"
    assert len(one_line("x" * 10_000)) == 301


def test_defaults_wait_an_hour_for_somebody_who_tunes():
    settings = RoundSettings()
    assert (settings.share, settings.grace_s, settings.scoring_s) == (0.5, 3600.0, 3600.0)
