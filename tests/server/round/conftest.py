"""A federation without a network: everything else is real, from the journal to the signatures.

The base is random and eight channels wide, and fusions record one context at two steps: half a
second each.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes
from mos_common.fused_model import FusedModel, read_fused
from mos_common.identity_scores import Identity
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_common.round_requests import TrainRequest
from mos_server.round.engine import RoundEngine
from mos_server.round.exchange import Answer, Lost, Polling, Question
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import RoundSettings, Upload

POLLING = Polling(pause_s=0.01, retry_s=0.0, back_soon_s=0.05)
SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
Reply = Answer | Lost | None | Callable[[], Answer | Lost | None]

# One context at two steps: a fusion takes half a second.
SMALL = {"settings": {"steps": 2, "contexts": ["V"], "ordinary": ["a"]}}


@dataclass
class Machine:
    """A participant's machine, which gives the replies of `concepts` and `scores` in order.

    The last reply is repeated. A reply is an answer, None (silence), or a function that makes one.
    The machine is online after `online_after` polls.
    """

    name: str
    pem: bytes
    concepts: list[Reply]
    scores: list[Reply]
    online_after: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The digest of its node key."""
        return key_digest(self.pem)

    def reply(self, kind: str) -> Answer | Lost | None:
        """Answer a question for a concept or for scores."""
        replies = self.concepts if kind == "concept" else self.scores
        self.asked.append(kind)
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply() if callable(reply) else reply


class Killed(BaseException):
    """The end of the round's process, wherever it is."""


class Network:
    """Machines as a round sees them (`mos_server.round.exchange.Nodes`).

    `answers` has the answers that wait to be fetched, by question.
    """

    def __init__(self, *machines: Machine) -> None:
        self.machines = dict(enumerate(machines, 1000))
        self.polls = 0
        self.answers: dict[str, Answer | Lost | None] = {}

    def online(self) -> dict[int, str]:
        """Return the machines that are online at this poll."""
        self.polls += 1
        return {node: machine.key for node, machine in self.machines.items() if self.polls > machine.online_after}

    def ask(self, question: Question) -> str:
        """Put a question to a machine."""
        question_id = f"question-{len(self.answers)}"
        kind = "concept" if isinstance(question.request, TrainRequest) else "scores"
        self.answers[question_id] = self.machines[question.node].reply(kind)
        return question_id

    def answer(self, question_id: str) -> Answer | Lost | None:
        """Hand over what came back, once."""
        answer, self.answers[question_id] = self.answers[question_id], None
        return answer


@dataclass
class Federation:
    """An operator's server and whoever enrolled."""

    state: State
    journal: Journal
    base: Base
    keys: Path
    make_concept: Callable[..., Concept]

    def machine(self, name: str, *concepts: Reply, scores: list[Reply] | None = None, **fields: int) -> Machine:
        """Enrol a participant, who answers with a concept and good scores by default."""
        machine = self.stranger(name, *concepts, scores=scores, **fields)
        token, _ = self.journal.participants.invite(name, valid_s=60)
        self.journal.participants.enrol(token, machine.key, machine.pem)
        return machine

    def stranger(self, name: str, *concepts: Reply, scores: list[Reply] | None = None, **fields: int) -> Machine:
        """The same of somebody who has not enrolled."""
        count = len(list(self.keys.iterdir()))
        pem = public_pem(create_node_key(self.keys / f"{name}-{count}"))
        own = self.file(name=f"<{name}s-cat>")
        return Machine(name, pem, list(concepts) or [own], scores or [SCORES], **fields)

    def file(self, **fields: object) -> bytes:
        """A concept file; the seed follows the name, so names differ in contents too."""
        seed = zlib.crc32(str(fields).encode()) % 1000
        return concept_to_bytes(self.make_concept(self.base, **{"strength": 0.02, "seed": seed} | fields))

    def ask(self, **settings: object) -> str:
        """Ask for a round; its name."""
        return self.journal.rounds.ask(RoundSettings(**{"fusion": SMALL} | settings)).id

    def run(self, *machines: Machine, **settings: object) -> str:
        """Ask for a round and run it to its end among `machines`; its name."""
        name = self.ask(**settings)
        self.go_on(name, Network(*machines))
        return name

    def go_on(self, name: str, network: Network) -> None:
        """Begin a round, or begin it again after a kill."""
        RoundEngine(self.state, self.journal, name, self.base, POLLING).run(network)

    @contextmanager
    def killed_at(self, *, status: str = "", note: str = "") -> Iterator[None]:
        """Kill the round in this block before it journals a status, or a note that starts so."""

        def advance(name: str, to: str, reason: str = "") -> None:
            if to == status:
                raise Killed
            real_advance(name, to, reason)

        def write(name: str, text: str) -> None:
            if note and text.startswith(note):
                raise Killed
            real_note(name, text)

        real_advance, real_note = self.journal.rounds.advance, self.journal.notes.add
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(self.journal.rounds, "advance", advance)
            patch.setattr(self.journal.notes, "add", write)
            yield

    def status(self, name: str) -> str:
        """Where a round stands."""
        return self.journal.rounds.get(name).status

    def notes(self, name: str) -> list[str]:
        """What a person who follows the round reads."""
        return [text for _, _, text in self.journal.notes.of(name)]

    def admitted(self, name: str) -> list[Upload]:
        """The uploads that are in a round."""
        return self.journal.uploads.admitted(name)

    def refusals(self, name: str) -> dict[str, str]:
        """By participant, why an upload was refused."""
        return {upload.participant: upload.refused for upload in self.journal.uploads.of(name) if upload.refused}

    def model(self, name: str) -> FusedModel:
        """The model that a round published."""
        return read_fused(self.state.artefacts.model(name))

    def tokens(self, name: str) -> list[str]:
        """What is in the model that a round published."""
        return sorted(concept.token for concept in self.model(name).manifest.concepts)


@pytest.fixture
def federation(
    tmp_path: Path,
    random_base: Callable[..., Base],
    make_concept: Callable[..., Concept],
) -> Iterator[Federation]:
    """A server nobody has joined yet."""
    base = random_base(width=8)
    (tmp_path / "keys").mkdir()
    state = create_state(tmp_path / "state", ServerConfig(base="random", base_fingerprint=base.fingerprint))
    journal = Journal(state.database)
    yield Federation(state, journal, base, tmp_path / "keys", make_concept)
    journal.close()


@pytest.fixture
def network() -> Callable[..., Network]:
    """Machines that see each other through one network, for tests that look into it."""
    return Network
