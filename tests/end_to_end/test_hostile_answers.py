"""An admitted participant answers with everything but an answer; a real round goes on without it.

One server, two honest clients, and others written by hand with admitted keys. The model of every
round has the digest of the round in which nobody cheated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MessageType, RecordDict

from end_to_end.federation import Federation, is_ready, processes, tuned_people
from end_to_end.fleet import Answer, FleetClient, honest_answer
from end_to_end.hostile import LOST, NOT_STORED, REFUSED, SILENT, records
from mos_common import messages
from mos_common.concept_file import concept_from_bytes, concept_to_bytes
from mos_common.digests import digest_of_file
from mos_common.identity_scores import Identity
from mos_server.cli.people import invite
from mos_server.state.records import PUBLISHED

HONEST = ("alice", "bob")
SCORING = ("alice",)
KINDS = REFUSED | LOST | SILENT
SHORT = (
    "an undecodable body",
    "a body of 30,000 brackets",
    "a message that cannot be parsed",
    "200 objects",
    "an array that grows to 60 GB",
    "an error with a strange code",
    "half of its objects",
)
MANY = [f"m{i}" for i in range(len(SHORT))]
GROUPS = [tuple(islice(KINDS, start, start + len(MANY))) for start in range(0, len(KINDS), len(MANY))]
SENDERS = {f"m{i}": kind for i, kind in enumerate(SHORT)} | {"stale": "stale"}


@dataclass
class Besieged(Federation):
    """A server and two honest clients, and those who have a key as well."""

    hostile: dict[str, FleetClient] = field(default_factory=dict)

    def start(self) -> None:
        """Start the server and the honest clients; the others have enrolled."""
        self.create(method="average")
        for name in SENDERS:
            invite(self.server, name, self.out / f"{name}.kit")
        self.serve()
        self.join(*self.participants, rounds=None)
        self.hostile |= {name: FleetClient(self.out / f"{name}.kit", self.out / name) for name in SENDERS}
        self.until("both are ready", lambda: all(map(is_ready, self.participants)))
        self.until("both are online", lambda: len(self.seen() & set(HONEST)) == 2)

    def seen(self) -> set[str]:
        with self.journal() as journal:
            return {each.name for each in journal.participants.all() if each.seen}

    def run(self, *flags: str, grace: str = "4s") -> str:
        """Run a round to its end; its name."""
        newest = self.round("--grace", grace, *flags, beside=HONEST, timeout_s=1500)
        assert newest.status == PUBLISHED
        return newest.id

    def digest(self, name: str) -> str:
        return digest_of_file(self.state.artefacts.model(name) / "adapter.safetensors")


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    out = tmp_path_factory.mktemp("hostile")
    with processes() as running:
        opened = Besieged(out, running, tuned_people(tuned, out, scoring=SCORING)[:2])
        opened.start()
        yield opened
        for client in opened.hostile.values():
            client.close()


@pytest.fixture(scope="module")
def honest(federation: Besieged) -> str:
    """The digest of the model of a round in which nobody cheats, and one says nothing."""
    with federation.hostile["stale"].answering(lambda question: None):
        return federation.digest(federation.run("--wait", "2"))


def instead(kind: str, step: str) -> Callable[[Any], Answer | None]:
    """Answer the questions of one step with a kind, all others with silence."""

    def answer(question: Any) -> Answer | None:
        if question.metadata.message_type != step:
            return None
        return KINDS[kind](question, messages.identity_content(Identity(0.1, 0.6, 0.5, 0.8)))

    return answer


def check(federation: Besieged, name: str, kinds: dict[str, str], honest: str) -> None:
    """Check that the senders of `kinds`, by name, cost themselves the round and nobody else."""
    assert federation.digest(name) == honest
    assert {upload.participant for upload in federation.uploads(name) if upload.refused is None} == set(HONEST)
    notes, reasons = federation.notes(name), {each.participant: each.refused for each in federation.uploads(name)}
    assert not [text for text in notes if "process ended" in text], notes
    assert all(text.isprintable() for text in notes)
    for sender, kind in kinds.items():
        assert f"asked {sender}" in notes, (kind, notes)
        # What the server refuses to store never arrives: it costs the grace, or is lost.
        silent = any(text.startswith("going on without") and sender in text for text in notes)
        lost = any(text.startswith(f"{sender}: no answer (") for text in notes)
        if kind in NOT_STORED:
            assert sender not in reasons, (kind, reasons)
            assert silent or lost, (kind, notes)
        elif kind in REFUSED:
            assert reasons.get(sender), (kind, notes)
        if kind in REFUSED:
            assert lost or notes.count(f"asked {sender}") == 1, kind
        elif kind in LOST:
            assert any(text.startswith(f"{sender}: no answer (error ") for text in notes), (kind, notes)


@pytest.fixture(scope="module")
def attacked(federation: Besieged, honest: str) -> str:
    """One round in which everybody cheats at once, each in another way."""

    def stale(question: Any) -> Answer:
        earlier = federation.hostile["stale"].questions[0]
        assert earlier.metadata.message_id != question.metadata.message_id
        return honest_answer(earlier, RecordDict())

    with ExitStack() as stack:
        for sender, kind in SENDERS.items():
            answers = instead(kind, MessageType.TRAIN) if kind in KINDS else stale
            stack.enter_context(federation.hostile[sender].answering(answers))
        return federation.run("--wait", "2")


def test_hostile_answers_of_all_kinds_cost_their_senders_the_round_and_nobody_else(federation, attacked, honest):
    check(federation, attacked, SENDERS, honest)


def test_the_first_attack_of_all_is_refused_by_name_with_its_reason(federation, attacked):
    """A reply of 300 bytes whose body cannot be decoded ended every round before."""
    (sender,) = [name for name, kind in SENDERS.items() if kind == "an undecodable body"]
    reasons = {each.participant: each.refused for each in federation.uploads(attacked)}
    assert reasons[sender] == "it cannot be decoded (UnicodeDecodeError)"


def test_complaint_4_a_round_ends_whatever_crashes_in_it(federation, attacked):
    """Nothing is left "running": the next round can be asked for, of the same server."""
    assert not [each for each in federation.rounds() if each.unfinished]
    assert federation.processes.running["server"].poll() is None


def test_complaint_9_one_that_is_silent_stops_nobody_and_the_others_go_on(federation, honest):
    assert honest
    assert "going on without stale: no answer for 4s (--grace)" in federation.notes("round-001")
    assert all(federation.processes.running[each].poll() is None for each in HONEST)


def test_complaint_10_an_answer_to_an_earlier_round_is_not_counted(federation, attacked):
    assert "asked stale" in federation.notes(attacked)
    assert [upload for upload in federation.uploads(attacked) if upload.participant == "stale"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kinds", GROUPS, ids="; ".join)
def test_hostile_concepts_cost_their_senders_the_round_and_nobody_else(federation, honest, kinds):
    senders = dict(zip(MANY, kinds, strict=False))
    with ExitStack() as stack:
        for sender, kind in senders.items():
            stack.enter_context(federation.hostile[sender].answering(instead(kind, MessageType.TRAIN)))
        name = federation.run("--wait", "2")
    check(federation, name, senders, honest)


class Scoring:
    """Somebody sends a concept like anybody else, and then `kind` instead of scores, if any."""

    def __init__(self, kind: str | None, file: bytes, seconds: float) -> None:
        self.kind, self.file, self.seconds = KINDS.get(kind, records), file, seconds

    def __call__(self, question: Any) -> Answer | None:
        if question.metadata.message_type == MessageType.TRAIN:
            return honest_answer(question, messages.upload_content(messages.Upload(self.file, self.seconds)))
        return self.kind(question, messages.identity_content(Identity(0.1, 0.6, 0.5, 0.8)))


def scored(federation: Besieged, kinds: dict[str, str]) -> str:
    """Run a round of everybody, in which some send `kinds` instead of scores; its name."""
    (of_alice,) = (federation.participants[0].state / "concepts").glob("*.safetensors")
    kept = of_alice.read_bytes()
    with ExitStack() as stack:
        for number, sender in enumerate(MANY, 1):
            # Flower keeps equal objects once: everybody's numbers differ.
            answers = Scoring(kinds.get(sender), another_concept(kept, number), float(number))
            stack.enter_context(federation.hostile[sender].answering(answers))
        return federation.run("--wait", str(len(HONEST) + len(MANY)), grace="4m")


@pytest.fixture(scope="module")
def everybody(federation: Besieged, honest: str) -> str:
    """The digest of the round in which everybody is honest."""
    assert honest
    name = scored(federation, {})
    assert {upload.participant for upload in federation.uploads(name) if upload.identity} == {*SCORING, *MANY}
    return federation.digest(name)


def another_concept(data: bytes, number: int) -> bytes:
    """Return another person's concept: as loud, in other directions, so that it is no copy."""
    concept = concept_from_bytes(data)
    turned = {name: dataclasses.replace(pair, B=pair.B.roll(number, dims=0)) for name, pair in concept.pairs.items()}
    return concept_to_bytes(dataclasses.replace(concept, pairs=turned))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", GROUPS, ids="; ".join)
def test_hostile_scores_cost_their_senders_the_scores_and_nobody_else(federation, everybody, kinds):
    senders = dict(zip(MANY, kinds, strict=False))
    name = scored(federation, senders)
    assert federation.digest(name) == everybody
    with_scores = {upload.participant for upload in federation.uploads(name) if upload.identity is not None}
    assert with_scores == {*SCORING, *MANY} - set(senders)
    notes = federation.notes(name)
    for sender in senders:
        assert [text for text in notes if sender in text and ("scor" in text or "going on" in text)], (sender, notes)
