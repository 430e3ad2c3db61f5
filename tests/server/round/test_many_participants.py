"""What a round asks of Flower, and says to people, does not grow with its participants."""

from __future__ import annotations

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mos_common import messages
from mos_common.node_key import public_pem
from mos_common.round_requests import TrainRequest
from mos_server.round.exchange import Lost, Question
from mos_server.round.flower_nodes import FlowerNodes
from mos_server.round.follow import _doing
from mos_server.round.waiting import Grace, describe_waited_for
from mos_server.state.records import COLLECTING, Participant, RoundSettings
from reference.flower_grid import MemoryGrid

COUNT = 20


@pytest.fixture(autouse=True)
def _within_a_run(monkeypatch):
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


class Counting(MemoryGrid):
    """A grid that counts the calls for replies, and refuses those with a `poisoned` question."""

    def __init__(self, answer=lambda question: None, count: int = COUNT) -> None:
        keys = [public_pem(ec.generate_private_key(ec.SECP384R1())) for _ in range(count)]
        super().__init__({number: (key, "online", answer) for number, key in enumerate(keys)})
        self.calls, self.poisoned = list[int](), ""
        self.activated = dict.fromkeys(range(count), "2026-01-01T00:00:00+00:00")
        pull = self._runtime_client.PullMessages

        def counted(request):
            self.calls.append(len(request.message_ids))
            if self.poisoned in request.message_ids:
                broken = httpx.Request("POST", "https://127.0.0.1/v1/runtime/pull-messages")
                raise httpx.HTTPStatusError("500", request=broken, response=httpx.Response(500, request=broken))
            return pull(request)

        self._runtime_client.PullMessages = counted

    def get_nodes(self):
        for node in super().get_nodes():
            node.last_activated_at = self.activated[node.node_id]
            yield node


def asked(grid: Counting) -> tuple[FlowerNodes, list[str]]:
    """Ask everybody for a concept."""
    nodes = FlowerNodes(grid)
    request = TrainRequest(round="round-001", base="ab" * 32)
    questions = []
    for number, key in nodes.online().items():
        somebody = Participant(key, f"p{number}", b"", 0.0, None, None)
        questions.append(nodes.ask(Question(number, somebody, request, 60.0)))
    return nodes, questions


def concept(text: bytes) -> RecordDict:
    return messages.upload_content(messages.Upload(text, 1.0))


def test_a_poll_is_one_call_however_many_are_waited_for():
    grid = Counting()
    nodes, questions = asked(grid)
    for _ in range(3):
        assert [nodes.answer(each) for each in questions] == [None] * COUNT
    assert grid.calls == [COUNT] * 3


def test_everybodys_answer_arrives_once_and_is_looked_for_no_longer():
    grid = Counting(lambda question: concept(str(question.metadata.dst_node_id).encode()))
    nodes, questions = asked(grid)
    assert [nodes.answer(each) for each in questions] == [str(number).encode() for number in range(COUNT)]
    assert grid.calls == [COUNT]
    assert len(grid._runtime_client.confirmed) == COUNT


def test_a_question_asked_later_is_looked_for_at_once():
    grid = Counting(lambda question: concept(b"a") if question.metadata.dst_node_id else None)
    nodes, (silent, second, *_) = asked(grid)
    assert nodes.answer(silent) is None
    request = TrainRequest(round="round-001", base="cd" * 32)
    late = nodes.ask(Question(1, Participant("k", "p1", b"", 0.0, None, None), request, 60.0))
    assert (nodes.answer(late), nodes.answer(second)) == (b"a", b"a")


def test_a_call_that_fails_for_one_answer_costs_nobody_else_theirs():
    grid = Counting(lambda question: concept(b"a"))
    nodes, questions = asked(grid)
    grid.poisoned = questions[3]
    answers = {each: nodes.answer(each) for each in questions}
    assert [each for each, answer in answers.items() if answer is None] == [questions[3]]


def test_a_client_that_was_started_again_between_two_polls_is_asked_again():
    """Flower reports a lost question only while its node is offline."""
    grid = Counting(count=2)
    nodes, questions = asked(grid)
    grid.activated[0] = "2026-01-01T00:01:00+00:00"
    assert [nodes.answer(each) for each in questions] == [None, None]
    assert set(nodes.online()) == {0, 1}
    assert [nodes.answer(each) for each in questions] == [Lost("its client was started again"), None]


def test_an_answer_that_is_there_counts_though_its_client_was_started_again():
    grid = Counting(lambda question: concept(b"a"), count=1)
    nodes, (question,) = asked(grid)
    grid.activated[0] = "2026-01-01T00:01:00+00:00"
    assert set(nodes.online()) == {0}
    assert nodes.answer(question) == b"a"


def test_many_who_are_waited_for_make_one_note_until_few_are_left():
    notes: list[str] = []
    grace = Grace(RoundSettings(share=0.1), notes.append)
    names = [f"p{number:02}" for number in range(40)]
    for answered in range(10, 40):
        grace.is_over(answered, names[answered:], silent_s=0.0)
    assert len(notes) == 1 + 8
    assert notes[0].startswith("enough have answered: waiting for p10, p11, p12 and 27 more until ")
    assert notes[-1].startswith("enough have answered: waiting for p39 until ")


def test_status_counts_many_and_names_few(federation):
    name = federation.ask()
    rounds = federation.journal.rounds
    rounds.advance(name, COLLECTING)
    for number in range(10):
        rounds.set_activity(name, federation.machine(f"p{number}").key, "uploaded" if number else "tuning", attempts=1)
    assert _doing(federation.journal, rounds.get(name)) == "collecting: 9 uploaded, 1 tuning"
    (line,) = describe_waited_for(federation.journal, rounds.get(name))
    assert line.startswith("waiting for p0, until ")
