"""GradientFusion as a Flower strategy: messages sent, replies read, arguments refused."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MessageType, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mos_common import messages
from mos_common.errors import RequestError
from mos_common.identity_scores import Identity
from mos_server.round.exchange import Polling
from mos_server.round.strategy import GradientFusion
from mos_server.state.records import PUBLISHED
from reference.flower_grid import MemoryGrid

SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
POLLING = Polling(pause_s=0.01, retry_s=0.0, back_soon_s=0.05)


@pytest.fixture(autouse=True)
def _within_a_run(monkeypatch):
    """Flower makes messages only within a run of its own."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture
def strategy(federation):
    """A strategy for round-001."""
    return GradientFusion(federation.state, federation.journal, federation.ask(wait=1), federation.base, POLLING)


def participant(federation, name: str, *, status: str = "online", concept=None, scores=None):
    """Add an enrolled node that replies with `concept` and `scores`, which may be functions."""
    replies = {
        MessageType.TRAIN: concept or messages.upload_content(messages.Upload(federation.file(name="<cat>"), 1.0)),
        MessageType.EVALUATE: scores or messages.identity_content(SCORES),
    }
    return federation.machine(name).pem, status, lambda message: replies[message.metadata.message_type]


def test_a_round_is_run_by_messages(federation, strategy):
    grid = MemoryGrid({7: participant(federation, "alice")})
    strategy.start(grid)
    assert federation.status("round-001") == PUBLISHED
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert [concept.identity for concept in federation.model("round-001").manifest.concepts] == [SCORES]
    train, evaluate = grid.sent
    assert [message.metadata.dst_node_id for message in grid.sent] == [7, 7]
    assert (train.metadata.message_type, evaluate.metadata.message_type) == (MessageType.TRAIN, MessageType.EVALUATE)
    assert messages.read_train(train.content).round == "round-001"
    assert messages.read_train(train.content).base == federation.base.fingerprint
    assert messages.read_evaluate(evaluate.content).candidate == federation.state.artefacts.candidate("round-001").name
    an_hour = 3600  # a clock that is set meanwhile ends no question
    assert 7000 < train.metadata.ttl - an_hour <= 7200  # the deadline
    assert evaluate.metadata.ttl - an_hour == 3600


def test_nodes_that_are_offline_or_of_no_participant_get_no_message(federation, strategy):
    offline = participant(federation, "bob", status="offline")
    stranger = (federation.stranger("mallory").pem, "online", lambda message: pytest.fail("asked"))
    strategy.start(MemoryGrid({7: participant(federation, "alice"), 8: offline, 9: stranger}))
    assert federation.tokens("round-001") == ["<alice/cat>"]


def test_an_error_of_flower_is_a_lost_answer(federation, strategy):
    bob = participant(federation, "bob", concept=Error(5, "node unavailable"))
    grid = MemoryGrid({7: participant(federation, "alice"), 8: bob})
    strategy.start(grid)
    assert [message.metadata.dst_node_id for message in grid.sent].count(8) == 3
    assert "bob: no answer (error 5, node unavailable), given up" in federation.notes("round-001")


@pytest.mark.parametrize("kind", ["PicturesError", "BaseModelError", "StateError"])
def test_a_participant_that_cannot_score_is_asked_once_and_its_concept_is_published(federation, strategy, kind):
    """One line says it; nothing of the error's text is known here."""
    grid = MemoryGrid({7: participant(federation, "alice", scores=Error(0, kind))})
    strategy.start(grid)
    assert federation.status("round-001") == PUBLISHED
    assert federation.tokens("round-001") == ["<alice/cat>"]
    assert len(grid.sent) == 2
    (line,) = [text for text in federation.notes("round-001") if "scores" in text or "not scored" in text]
    assert line.startswith("alice: no scores, the concept stays: ")
    assert kind in line


def test_another_error_while_scoring_is_a_lost_answer(federation, strategy):
    grid = MemoryGrid({7: participant(federation, "alice", scores=Error(0, "NetworkError"))})
    strategy.start(grid)
    assert [message.metadata.message_type for message in grid.sent].count(MessageType.EVALUATE) == 3
    assert "alice: no answer (error 0, NetworkError), given up" in federation.notes("round-001")


def records(array: Array | None) -> RecordDict:
    """Records that pass for an upload of this array."""
    return RecordDict({"concept": ArrayRecord({"file": array} if array else {}), "numbers": MetricRecord()})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict({"other": ConfigRecord()}), "has the records"),
        (records(None), "exactly one array"),
        (records(Array("object", (3,), "pickle", b"abc")), "expected a row of uint8"),
        (records(Array("uint8", (1 << 40,), "numpy.ndarray", b"abc")), "at most"),
        (records(Array("uint8", (9,), "numpy.ndarray", messages.array_header(9) + b"short")), "carries 133 bytes"),
    ],
)
def test_records_that_are_no_upload_are_refused_unread(federation, strategy, content, reason):
    grid = MemoryGrid({7: participant(federation, "alice"), 8: participant(federation, "mallory", concept=content)})
    strategy.start(grid)
    assert reason in federation.refusals("round-001")["mallory"]
    assert federation.tokens("round-001") == ["<alice/cat>"]


@pytest.mark.parametrize(
    "numbers",
    [
        {"class_word": 0.1, "single": 0.6, "fused": float("nan"), "ceiling": 0.8},
        {"class_word": 0.1, "single": 0.6, "fused": 7.0, "ceiling": 0.8},
        {"class_word": 0.1, "single": 0.6, "fused": 0.5},
        {"class_word": 0.1, "single": 0.6, "fused": 0.5, "ceiling": 0.8, "more": 1.0},
        {"class_word": 0.1, "single": 0.6, "fused": [0.5], "ceiling": 0.8},
    ],
)
def test_scores_that_are_not_four_cosines_are_not_believed(federation, strategy, numbers):
    grid = MemoryGrid({7: participant(federation, "alice", scores=RecordDict({"identity": MetricRecord(numbers)}))})
    strategy.start(grid)
    assert [upload.identity for upload in federation.admitted("round-001")] == [None]
    assert [text for text in federation.notes("round-001") if text.startswith("alice: scores refused: ")]
    assert len(grid.sent) == 2


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"initial_arrays": ArrayRecord()}, "initial_arrays=.*--base of mos-server init"),
        ({"num_rounds": 3}, "num_rounds=3 .*ask for another with mos-server round"),
        ({"timeout": 60.0}, r"timeout=60\.0 .*--deadline of mos-server round"),
        ({"train_config": ConfigRecord()}, "train_config=.*--set of mos-client join"),
        ({"evaluate_config": ConfigRecord()}, r"evaluate_config=.*--scoring"),
        ({"evaluate_fn": lambda number, arrays: None}, "evaluate_fn=.*the participants score"),
    ],
)
def test_an_argument_of_flower_that_has_no_effect_is_refused(strategy, given, instead):
    """The refusal says what was given and what to set instead; nobody is asked."""
    grid = MemoryGrid({})
    with pytest.raises(RequestError, match=instead):
        strategy.start(grid, **given)
    assert grid.sent == []


def test_every_argument_that_was_given_in_vain_is_named_at_once(strategy):
    with pytest.raises(RequestError) as refused:
        strategy.start(MemoryGrid({}), ArrayRecord(), 3, 60.0)
    assert all(name in str(refused.value) for name in ("initial_arrays", "num_rounds=3", "timeout=60.0"))


def test_one_round_may_be_asked_for_by_number(federation, strategy):
    strategy.start(MemoryGrid({7: participant(federation, "alice")}), num_rounds=1)
    assert federation.status("round-001") == PUBLISHED


def test_flowers_single_steps_are_refused_with_what_to_call(strategy):
    for step in (strategy.configure_train, strategy.configure_evaluate):
        with pytest.raises(RequestError, match=r"start\(grid\)"):
            step(1, ArrayRecord(), ConfigRecord(), MemoryGrid({}))
    for step in (strategy.aggregate_train, strategy.aggregate_evaluate):
        with pytest.raises(RequestError, match=r"start\(grid\)"):
            step(1, [])


def test_the_summary_says_what_the_round_waits_for(strategy, caplog):
    caplog.set_level("INFO")
    strategy.summary()
    assert "waiting for at least 1 concept, until " in caplog.text
