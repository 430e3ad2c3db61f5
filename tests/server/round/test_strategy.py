"""A round, seen from Flower: what happens to uploads, lost answers, late joiners, bad concepts and killed servers.

Flower's grid is replaced by one that loses and spoils answers on demand. The base model, admission, fusion (by averaging, which
is instant) and publication are the real ones.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mos_common import messages
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes
from mos_common.errors import FusionError
from mos_common.fused_model import read_fused
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_common.signing import verify_model
from mos_server.fusion import fuse as fusion
from mos_server.fusion.settings import FusionSettings
from mos_server.round.follow import describe_round
from mos_server.round.strategy import GradientFusion, Patience, RoundCancelledError
from mos_server.state.concepts import withdraw
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import CANCELLED, FUSING, HELD_BACK, PUBLISHED, SCORING, RoundSettings

PATIENCE = Patience(pause_s=0.01, retry_s=0.0, back_soon_s=0.05)
SCORES = messages.Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
Answer = Callable[[Message], Message | None]


def upload(data: bytes) -> Answer:
    return lambda message: Message(messages.upload_content(messages.Upload(data, 1.0)), reply_to=message)


def scores(identity: messages.Identity = SCORES) -> Answer:
    return lambda message: Message(messages.identity_content(identity), reply_to=message)


def lost(message: Message) -> Message:
    return Message(Error(5, "node unavailable"), reply_to=message)


def silent(message: Message) -> None:
    return None


@dataclass
class Node:
    """A participant's machine: answers train requests with `train`, one after the other, the last again and again."""

    name: str
    pem: bytes
    train: list[Answer]
    evaluate: list[Answer] = field(default_factory=lambda: [scores()])
    joins_at_look: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return key_digest(self.pem)

    def answer(self, message: Message) -> Message | None:
        kind = message.metadata.message_type
        answers = self.train if kind == "train" else self.evaluate
        self.asked.append(kind)
        return (answers.pop(0) if len(answers) > 1 else answers[0])(message)


class Grid:
    """Flower's grid, as far as a strategy sees it."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = dict(enumerate(nodes, 1000))
        self.looks = 0
        self.replies: dict[str, Message | None] = {}
        self.unpulled: dict[str, Message] = {}

    def get_nodes(self) -> Iterable[SimpleNamespace]:
        self.looks += 1
        for number, node in self.nodes.items():
            if self.looks > node.joins_at_look:
                yield SimpleNamespace(node_id=number, public_key=node.pem, status="online", name="never believed")

    def push_messages(self, sent: Iterable[Message]) -> list[str]:
        (message,) = sent
        identifier = f"message-{len(self.replies)}"
        message.metadata.__dict__["_message_id"] = identifier
        self.replies[identifier] = self.nodes[message.metadata.dst_node_id].answer(message)
        return [identifier]

    def pull_messages(self, identifiers: Iterable[str]) -> Iterator[Message]:
        (identifier,) = identifiers
        reply, self.replies[identifier] = self.replies[identifier], None
        if reply is not None:
            yield reply


@dataclass
class Federation:
    state: State
    journal: Journal
    base: Base
    keys: Path
    concept: Callable[..., Concept]

    def node(self, name: str, *train: Answer, **fields) -> Node:
        """Somebody who has enrolled and answers with their concept, unless told otherwise."""
        key = create_node_key(self.keys / f"{name}-{time.monotonic_ns()}")
        node = Node(name, public_pem(key), list(train) or [upload(self.file(name=f"<{name}s-cat>"))], **fields)
        token, _ = self.journal.participants.invite(name, valid_s=60)
        self.journal.participants.enrol(token, node.key, node.pem)
        return node

    def file(self, **fields) -> bytes:
        """A concept file; the seed follows the name, so names differ in contents too."""
        return concept_to_bytes(
            self.concept(self.base, **{"strength": 0.02, "seed": zlib.crc32(str(fields).encode()) % 1000} | fields)
        )

    def run(self, grid: Grid, **settings) -> str:
        """Ask for a round and run it to its end; its name."""
        name = self.journal.rounds.ask(RoundSettings(**settings)).id
        self.go_on(grid, name)
        return name

    def go_on(self, grid: Grid, name: str) -> None:
        GradientFusion(self.state, self.journal, name, self.base, PATIENCE).start(grid)

    def notes(self, name: str) -> str:
        return "\n".join(text for _, _, text in self.journal.notes.of(name))


@pytest.fixture
def federation(
    tmp_path: Path, tiny: Base, make_concept: Callable[..., Concept], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Federation]:
    for name in ("_run_id", "_task_id", "_node_id"):  # messages are only made within a run
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)
    real = fusion.fuse
    monkeypatch.setattr(
        fusion,
        "fuse",
        lambda base, concepts, settings, **given: real(base, concepts, FusionSettings("average"), **given),
    )
    state = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint=tiny.fingerprint))
    journal = Journal(state.database)
    yield Federation(state, journal, tiny, tmp_path, make_concept)
    journal.close()


def tokens(federation: Federation, name: str) -> list[str]:
    return sorted(concept.token for concept in read_fused(federation.state.artefacts.model(name)).manifest.concepts)


def test_a_round_is_collected_fused_scored_signed_and_published(federation: Federation):
    nodes = [federation.node(name) for name in ("alice", "bob")]
    name = federation.run(Grid(*nodes), wait=2)
    assert federation.journal.rounds.get(name).status == PUBLISHED
    verify_model(federation.state.artefacts.model(name), federation.state.pki.signing_key_pem())
    assert tokens(federation, name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]
    manifest = read_fused(federation.state.artefacts.model(name)).manifest
    assert {concept.identity.fused for concept in manifest.concepts} == {SCORES.fused}
    assert not federation.state.artefacts.candidate(name).exists()
    assert [node.asked for node in nodes] == [["train", "evaluate"]] * 2


def test_one_participant_is_a_round(federation: Federation):
    assert tokens(federation, federation.run(Grid(federation.node("alice")))) == ["<alice/alices-cat>"]


def test_who_is_not_admitted_is_not_asked(federation: Federation):
    stranger = Node("mallory", public_pem(create_node_key(federation.keys / "mallory")), [upload(federation.file())])
    revoked = federation.node("bob")
    federation.journal.participants.revoke(revoked.key)
    name = federation.run(Grid(stranger, revoked, federation.node("alice")))
    assert tokens(federation, name) == ["<alice/alices-cat>"]
    assert stranger.asked == revoked.asked == []


def test_a_lost_answer_is_asked_for_again_three_times_in_all(federation: Federation):
    alice = federation.node("alice", lost, lost, upload(federation.file(name="<cat>")))
    bob = federation.node("bob", lost)
    name = federation.run(Grid(alice, bob))
    assert tokens(federation, name) == ["<alice/cat>"]
    assert bob.asked == ["train"] * 3
    assert {member.name: member.attempts for member in federation.journal.rounds.members(name)} == {
        "alice": 4,
        "bob": 3,
    }
    assert "bob: no answer (error 5, node unavailable), given up" in federation.notes(name)


def test_a_late_joiner_is_asked_while_others_are_waited_for(federation: Federation):
    name = federation.run(Grid(federation.node("alice"), federation.node("bob", joins_at_look=5)), wait=2)
    assert tokens(federation, name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]


def test_a_bad_concept_leaves_the_round_with_its_reason_and_the_round_goes_on(federation: Federation):
    bad = federation.node("bob", upload(federation.file()[:-7]))
    broken = federation.node("carol", upload(b"\x80\x04pickle"))
    name = federation.run(Grid(federation.node("alice"), bad, broken))
    assert tokens(federation, name) == ["<alice/alices-cat>"]
    refused = {each.participant: each.refused for each in federation.journal.uploads.of(name) if each.refused}
    assert set(refused) == {"bob", "carol"}
    assert bad.asked == broken.asked == ["train"]
    assert "bob: upload refused: " in federation.notes(name)


def test_what_is_not_a_number_is_not_fused(federation: Federation):
    good = federation.file(name="<cat>", words=0)
    spoiled = good[:-2] + b"\x00\x7e"  # the last number of the last tensor, in fp16
    name = federation.run(Grid(federation.node("alice"), federation.node("bob", upload(spoiled))))
    (refused,) = (each.refused for each in federation.journal.uploads.of(name) if each.refused)
    assert "NaN" in refused
    assert tokens(federation, name) == ["<alice/alices-cat>"]


def test_a_concept_of_another_base_is_not_fused(federation: Federation, sixteen: Base):
    foreign = concept_to_bytes(federation.concept(sixteen, "<cat>"))
    name = federation.run(Grid(federation.node("alice"), federation.node("bob", upload(foreign))))
    (refused,) = (each.refused for each in federation.journal.uploads.of(name) if each.refused)
    assert sixteen.fingerprint[:8] in refused


def test_a_participant_uses_a_name_once_and_contents_count_once(federation: Federation):
    first, second = federation.file(name="<cat>", seed=1), federation.file(name="<cat>", seed=2)
    grid = Grid(
        federation.node("alice", upload(first)),
        federation.node("alice", upload(second)),
        federation.node("bob", upload(second)),
        federation.node("carol", upload(second)),
    )
    name = federation.run(grid)
    assert tokens(federation, name) == ["<alice/cat>", "<bob/cat>"]
    assert [each.refused is None for each in federation.journal.uploads.of(name)] == [True, False, True, False]
    assert "another --concept name" in federation.notes(name)
    assert "the very same contents" in federation.notes(name)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (RecordDict(), "has the records"),
        (RecordDict({"concept": ArrayRecord(), "numbers": MetricRecord()}), "exactly one array"),
        (
            RecordDict(
                {"concept": ArrayRecord({"file": Array("object", (3,), "pickle", b"abc")}), "numbers": MetricRecord()}
            ),
            "expected a row of uint8",
        ),
        (
            RecordDict(
                {
                    "concept": ArrayRecord({"file": Array("uint8", (1 << 40,), "numpy.ndarray", b"abc")}),
                    "numbers": MetricRecord(),
                }
            ),
            "at most",
        ),
        (
            RecordDict(
                {
                    "concept": ArrayRecord(
                        {"file": Array("uint8", (9,), "numpy.ndarray", messages.array_header(9) + b"short")}
                    ),
                    "numbers": MetricRecord(),
                }
            ),
            "carries 133 bytes",
        ),
    ],
)
def test_records_that_are_not_an_upload_are_refused_unread(federation: Federation, records: RecordDict, reason: str):
    mallory = federation.node("mallory", lambda message: Message(records, reply_to=message))
    name = federation.run(Grid(federation.node("alice"), mallory))
    (refused,) = (each.refused for each in federation.journal.uploads.of(name) if each.refused)
    assert reason in refused


def test_the_deadline_ends_the_waiting_and_what_comes_later_is_for_the_next_round(federation: Federation):
    bob = federation.node("bob", silent)
    grid = Grid(federation.node("alice"), bob)
    name = federation.journal.rounds.ask(RoundSettings(wait=2, deadline_s=1.0)).id
    arrives = upload(federation.file(name="<dog>"))

    def slow(message: Message) -> None:
        waiting.append(message)

    waiting: list[Message] = []
    bob.train[:] = [slow]
    federation.journal.uploads.set_identity = (
        lambda *given, real=federation.journal.uploads.set_identity: (  # bob arrives while alice scores
            real(*given),
            grid.replies.__setitem__(waiting[0].metadata.message_id, arrives(waiting[0])),
        )
    )
    federation.go_on(grid, name)
    assert tokens(federation, name) == ["<alice/alices-cat>"]
    assert "the deadline has come with 1 of 2 concepts" in federation.notes(name)
    assert "<bob/dog> arrived, " in federation.notes(name)
    assert "kept for the next round" in federation.notes(name)
    del federation.journal.uploads.set_identity
    bob.train[:] = [silent]
    following = federation.run(grid, wait=2)
    assert tokens(federation, following) == ["<alice/alices-cat>", "<bob/dog>"]


def test_a_round_without_concepts_fails_and_says_what_to_do(federation: Federation):
    with pytest.raises(FusionError, match="mos-server status"):
        federation.run(Grid(), deadline_s=1.0)


class Killed(BaseException):
    """The end of the process, wherever it is."""


def test_a_round_killed_while_it_collects_does_not_ask_again_for_what_is_spooled(federation: Federation):
    def kill(message: Message) -> None:
        raise Killed

    alice, bob = federation.node("alice"), federation.node("bob", kill, joins_at_look=2)
    with pytest.raises(Killed):
        federation.run(Grid(alice, bob), wait=2)
    (spooled,) = federation.journal.uploads.admitted("round-001")
    assert spooled.digest in federation.state.artefacts.concepts()
    bob.train[:], bob.joins_at_look = [upload(federation.file(name="<dog>"))], 0
    federation.go_on(Grid(alice, bob), "round-001")
    assert tokens(federation, "round-001") == ["<alice/alices-cat>", "<bob/dog>"]
    assert alice.asked == ["train", "evaluate"]


def test_a_round_killed_while_it_fuses_fuses_what_it_had(federation: Federation, monkeypatch: pytest.MonkeyPatch):
    def kill(*given, **settings) -> None:
        raise Killed

    alice, bob = federation.node("alice"), federation.node("bob")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fusion, "fuse", kill)
        federation.run(Grid(alice))
    assert federation.journal.rounds.get("round-001").status == FUSING
    federation.go_on(Grid(alice, bob), "round-001")
    assert tokens(federation, "round-001") == ["<alice/alices-cat>"]
    assert alice.asked == ["train", "evaluate"]
    assert bob.asked == []


def test_a_round_killed_while_it_is_scored_is_not_fused_again(federation: Federation, monkeypatch: pytest.MonkeyPatch):
    def kill(message: Message) -> None:
        raise Killed

    alice = federation.node("alice")
    bob = federation.node("bob", evaluate=[kill, scores()])
    with pytest.raises(Killed):
        federation.run(Grid(alice, bob), wait=2)
    assert federation.journal.rounds.get("round-001").status == SCORING
    monkeypatch.setattr(fusion, "fuse", lambda *given, **settings: pytest.fail("fused again"))
    federation.go_on(Grid(alice, bob), "round-001")
    assert federation.journal.rounds.get("round-001").status == PUBLISHED


def test_identity_below_what_was_asked_holds_the_model_back(federation: Federation):
    low = messages.Identity(class_word=0.1, single=0.6, fused=0.2, ceiling=0.8)
    name = federation.run(
        Grid(federation.node("alice"), federation.node("bob", evaluate=[scores(low)])), wait=2, min_identity=0.4
    )
    round_ = federation.journal.rounds.get(name)
    assert round_.status == HELD_BACK
    assert "<bob/bobs-cat> has identity 0.200" in round_.reason
    assert federation.state.artefacts.candidate(name).is_dir()
    assert not federation.state.artefacts.model(name).exists()
    assert federation.journal.rounds.latest_published() is None


def test_a_concept_that_lost_much_is_flagged_where_people_look(federation: Federation):
    """In the journal, in `mos-server status` and in the manifest that everybody downloads; one that lost little is not."""
    much = messages.Identity(class_word=0.1, single=0.62, fused=0.5, ceiling=0.8)
    little = messages.Identity(class_word=0.1, single=0.55, fused=0.5, ceiling=0.8)
    alice, bob = federation.node("alice", evaluate=[scores(little)]), federation.node("bob", evaluate=[scores(much)])
    name = federation.run(Grid(alice, bob), wait=2, flag_loss=0.1)
    round_ = federation.journal.rounds.get(name)
    assert round_.status == PUBLISHED
    notes = [text for _, _, text in federation.journal.notes.of(name)]
    assert [text for text in notes if "flagged" in text] == [
        "flagged: <bob/bobs-cat> lost 0.120 of its identity in fusion"
    ]
    assert [line for line in describe_round(federation.journal, round_) if "flagged: lost 0.120" in line]
    told = json.loads((federation.state.artefacts.model(name) / "manifest.json").read_bytes())
    assert {concept["participant"]: concept["flagged"] for concept in told["concepts"]} == {"alice": False, "bob": True}


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
def test_scores_that_are_not_four_cosines_are_not_believed(federation: Federation, numbers: dict):
    bad = lambda message: Message(RecordDict({"identity": MetricRecord(numbers)}), reply_to=message)  # noqa: E731
    bob = federation.node("bob", evaluate=[bad])
    name = federation.run(Grid(federation.node("alice"), bob), wait=2)
    assert [upload.identity is None for upload in federation.journal.uploads.admitted(name)] == [False, True]
    assert federation.journal.rounds.get(name).status == PUBLISHED
    assert bob.asked == ["train", "evaluate"]


def test_who_left_before_the_scores_does_not_hold_up_the_round(federation: Federation):
    grid = Grid(federation.node("alice"), federation.node("bob"))
    bob = next(number for number, node in grid.nodes.items() if node.name == "bob")
    grid.nodes[bob].train = [
        lambda message: (
            grid.nodes.__setitem__(bob, Node("gone", grid.nodes[bob].pem, [], [], 10**9)),
            upload(federation.file(name="<dog>"))(message),
        )[1]
    ]
    name = federation.run(grid, wait=2)
    assert federation.journal.rounds.get(name).status == PUBLISHED
    assert "<bob/dog> was not scored" in federation.notes(name)


def test_a_concept_withdrawn_while_it_is_scored_is_not_published(federation: Federation):
    def withdrawn(message: Message) -> Message:
        if len(federation.journal.uploads.admitted("round-001")) == 2:
            withdraw(federation.state, federation.journal, "<bob/bobs-cat>")
        return scores()(message)

    name = federation.run(Grid(federation.node("alice", evaluate=[withdrawn]), federation.node("bob")), wait=2)
    assert tokens(federation, name) == ["<alice/alices-cat>"]


def test_a_withdrawn_concept_stays_out_of_the_rounds_to_come_though_its_owner_answers_again(federation: Federation):
    alice, bob = federation.node("alice"), federation.node("bob")
    federation.run(Grid(alice, bob), wait=2)
    withdraw(federation.state, federation.journal, "<bob/bobs-cat>")
    name = federation.run(Grid(federation.node("carol"), bob))
    assert tokens(federation, name) == ["<carol/carols-cat>"]
    assert "was withdrawn" in federation.notes(name)


def test_a_cancelled_round_stops(federation: Federation):
    def cancel(message: Message) -> None:
        federation.journal.rounds.advance("round-001", CANCELLED)

    with pytest.raises(RoundCancelledError):
        federation.run(Grid(federation.node("alice", cancel)))
    assert federation.journal.rounds.get("round-001").status == CANCELLED


def test_who_answers_is_known_from_what_was_asked(federation: Federation):
    """An answer that claims to be to another question is not taken for anybody's."""

    def spoofed(message: Message) -> Message:
        reply = upload(federation.file(name="<cat>"))(message)
        reply.metadata.__dict__["_reply_to_message_id"] = "message-0"
        return reply

    name = federation.run(Grid(federation.node("alice"), federation.node("mallory", spoofed)))
    assert tokens(federation, name) == ["<alice/alices-cat>"]
    assert "mallory: no answer (it answered another question)" in federation.notes(name)
