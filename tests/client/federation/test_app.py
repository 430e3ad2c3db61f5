"""The ClientApp: its answers to requests from Flower, and the requests it refuses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mos_client.federation import app as client_app
from mos_client.federation import download, enrolment, tuned
from mos_client.federation.rekey import current_session
from mos_client.federation.session import Session
from mos_client.tuning.request import TuneRequest
from mos_common import messages
from mos_common.concept_file import concept_from_bytes, write_concept
from mos_common.errors import BaseModelError, MosError, StateError, TrustError
from mos_common.fused_model import NamedConcept
from mos_common.identity_scores import Identity

ROUND = {"round": "round-001", "base": "ab" * 32}
SCORING = {**ROUND, "candidate": "round-001-candidate", "candidate_digest": "cd" * 32}


@pytest.fixture
def participant(sixteen, make_concept, random_base_folder, make_pictures, tmp_path) -> Session:
    """A state folder in which the concept has been tuned."""
    base = str(random_base_folder())
    request = TuneRequest(make_pictures(4), "<cat>", "cat", base=base, steps=1, device="cpu")
    joined = Session(tmp_path / "state", sixteen.fingerprint, request)
    write_concept(make_concept(sixteen), joined.cached())
    joined.save()
    return joined


@pytest.fixture
def ask(participant) -> Callable[..., Message]:
    """Put a request to the ClientApp as Flower does."""

    def request(kind: str, content: RecordDict | dict, state: object = None, **run_config: object) -> Message:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
        if isinstance(content, dict):
            content = RecordDict({messages.ROUND: ConfigRecord(content)})
        message = Message(content, dst_node_id=7, message_type=kind)
        message.metadata.__dict__["_message_id"] = "question"
        node_config = {} if state == "" else {"state": str(state or participant.state)}
        return client_app.app(message, Context(1, 7, node_config, RecordDict(), run_config))

    return request


def test_a_request_for_the_concept_is_answered_with_its_file(ask, participant, sixteen):
    answer = ask("train", ROUND | {"base": sixteen.fingerprint})
    assert not answer.has_error()
    assert answer.metadata.reply_to_message_id == "question"
    upload = messages.read_upload(answer.content)
    assert upload.data == participant.cached().read_bytes()
    assert concept_from_bytes(upload.data).base_fingerprint == sixteen.fingerprint
    assert upload.seconds < 5


def test_a_state_of_an_earlier_release_answers_under_todays_fingerprint(ask, participant, sixteen, make_concept):
    """Settings, file name and header of the concept have the old fingerprint of the same base."""
    old = replace(participant, fingerprint=sixteen.legacy_fingerprint)
    participant.cached().unlink()
    write_concept(replace(make_concept(sixteen), base_fingerprint=old.fingerprint), old.cached())
    old.save()
    upload = messages.read_upload(ask("train", ROUND | {"base": sixteen.fingerprint}).content)
    assert concept_from_bytes(upload.data).base_fingerprint == sixteen.fingerprint
    assert upload.data == participant.cached().read_bytes()
    assert Session.load(old.state) == current_session(Session.load(old.state))


def test_nothing_but_the_file_and_three_numbers_leaves(ask, participant, sixteen):
    """No record contains a picture, a caption, or the name of a file or folder."""
    (participant.request.images / "00.txt").write_text("V in my garden at Elm Street")
    (tuned,) = (participant.state / "concepts").iterdir()
    tuned.rename(participant.cached())  # another caption changes the name of the tuned file
    content = ask("train", ROUND | {"base": sixteen.fingerprint}).content
    assert set(content) == {"concept", "numbers"}
    assert set(content["numbers"]) == {"seconds", "bytes", "digest"}
    assert list(content["concept"]) == ["file"]
    sent = content["concept"]["file"].data
    for private in (b"Elm Street", b"00.png", str(participant.state).encode(), b"\x89PNG"):
        assert private not in sent


def test_another_base_model_is_refused(ask):
    with pytest.raises(BaseModelError, match="abababababab"):
        ask("train", ROUND)


HOSTILE = [
    {"round": "../../etc"},
    {"round": "round 1"},
    {"round": ""},
    {"round": "a" * 65},
    {"round": "round-001\n"},
    {"round": "Round-001"},
    {"round": 1},
    {"round": b"round-001"},
    {"round": ["round-001"]},
    {"base": "tiny"},
    {"base": "/etc/passwd"},
    {"base": "AB" * 32},
    {"base": "ab" * 33},
    {"state": "/tmp"},
    {"steps": 1000000},
    {"class_word": "person"},
]


@pytest.mark.parametrize("change", HOSTILE)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_values_that_no_server_of_ours_sends_are_refused(ask, monkeypatch, kind, change):
    monkeypatch.setattr(download, "download_model", lambda *given, **settings: pytest.fail("was fetched"))
    monkeypatch.setattr(client_app, "tuned_file", lambda *given: pytest.fail("was looked for"))
    with pytest.raises(TrustError, match="the server's request"):
        ask(kind, (ROUND if kind == "train" else SCORING) | change)


@pytest.mark.parametrize(
    "change",
    [
        {"candidate": "../state"},
        {"candidate": ".."},
        {"candidate": "/root"},
        {"candidate": ".hidden"},
        {"candidate_digest": ""},
        {"candidate_digest": "cd" * 31},
        {"candidate_digest": 7},
        {"token": "<bob/dog>"},
    ],
)
def test_a_candidate_is_named_as_candidates_are(ask, monkeypatch, change):
    monkeypatch.setattr(download, "download_model", lambda *given, **settings: pytest.fail("was fetched"))
    with pytest.raises(TrustError, match="the server's request"):
        ask("evaluate", SCORING | change)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_records_beside_the_request_are_refused(ask, sixteen, kind):
    good = ConfigRecord((ROUND if kind == "train" else SCORING) | {"base": sixteen.fingerprint})
    array = ArrayRecord({"weights": Array("float32", (1,), "numpy.ndarray", b"\0" * 132)})
    for beside in (ConfigRecord({"a": 1}), array, MetricRecord({"a": 1})):
        with pytest.raises(TrustError, match="records"):
            ask(kind, RecordDict({messages.ROUND: good, "more": beside}))
    for instead in (array, MetricRecord({"round": 1}), ConfigRecord({})):
        with pytest.raises(TrustError):
            ask(kind, RecordDict({messages.ROUND: instead}))
    with pytest.raises(TrustError):
        ask(kind, RecordDict({}))


@pytest.mark.parametrize("kind", ["query", "train.evil", "evaluate.default2", "system"])
def test_only_two_kinds_of_request_are_known(ask, kind):
    with pytest.raises(ValueError, match=r"(?i)message type|No "):
        ask(kind, ROUND)


def test_what_the_run_says_of_itself_counts_for_nothing(ask, participant, sixteen, tmp_path):
    """The server's run configuration is ignored: the state folder comes from our own SuperNode."""
    answer = ask("train", ROUND | {"base": sixteen.fingerprint}, state=participant.state, **{"base": "/etc"})
    assert messages.read_upload(answer.content).data == participant.cached().read_bytes()
    with pytest.raises(TrustError, match="without its state folder"):
        ask("train", ROUND | {"base": sixteen.fingerprint}, state="", **{"mos": str(participant.state)})
    with pytest.raises(StateError, match="not a participant's state folder"):
        ask("train", ROUND | {"base": sixteen.fingerprint}, state=tmp_path)


def test_a_damaged_cache_is_not_sent(ask, participant, sixteen):
    data = bytearray(participant.cached().read_bytes())
    data[-2:] = b"\xff\xff"  # NaN in float16
    participant.cached().write_bytes(data)
    with pytest.raises(MosError, match="NaN"):
        ask("train", ROUND | {"base": sixteen.fingerprint})


@pytest.fixture
def candidate(participant, sixteen, make_concept, monkeypatch, tmp_path) -> Path:
    """A candidate of two participants' concepts, where the download would put it."""
    from mos_client.federation.enrolment import Enrolment
    from mos_server.fusion.fuse import fuse
    from mos_server.fusion.methods.average import AverageSettings
    from mos_server.models.publish import write_fused

    own = concept_from_bytes(participant.cached().read_bytes())
    concepts = [NamedConcept("alice", own), NamedConcept("bob", make_concept(sixteen, "<dog>", seed=1))]
    folder = participant.state / "candidates" / "round-001-candidate"
    fused = fuse(sixteen, concepts, AverageSettings(), moments_dir=None, progress=lambda text: None)
    write_fused(fused, folder, round="round-001")
    monkeypatch.setattr(enrolment, "read_enrolment", lambda state: Enrolment("alice", None, None))
    calls = []

    def fetch(of: Enrolment, model: str, into: Path, *, manifest_digest: str) -> Path:
        calls.append((model, into, manifest_digest))
        return folder

    monkeypatch.setattr(download, "download_model", fetch)
    yield folder
    assert calls in ([], [("round-001-candidate", participant.state / "candidates", "cd" * 32)])


def test_a_request_for_scores_is_answered_with_four_numbers(ask, candidate, sixteen):
    answer = ask("evaluate", SCORING | {"base": sixteen.fingerprint})
    assert set(answer.content) == {"identity"}
    assert set(answer.content["identity"]) == {"class_word", "single", "fused", "ceiling"}
    assert all(type(value) is float and -1 <= value <= 1 for value in answer.content["identity"].values())
    assert messages.read_identity(answer.content).ceiling > 0
    assert not candidate.exists()


def test_scores_are_those_of_the_held_back_pictures_with_our_own_token(
    ask, candidate, participant, sixteen, monkeypatch
):
    given = {}

    def measured(base, concept, tuned_on, held_back, *, fused, fused_token):
        given.update(concept=concept, pictures=(len(tuned_on), len(held_back)), token=fused_token)
        return Identity(class_word=0.1, single=0.2, fused=0.3, ceiling=0.4)

    monkeypatch.setattr("mos_common.identity.measure_identity", measured)
    ask("evaluate", SCORING | {"base": sixteen.fingerprint})
    assert given["token"] == "<alice/cat>"
    assert given["pictures"] == (2, 2)
    own = concept_from_bytes(participant.cached().read_bytes())
    torch.testing.assert_close(given["concept"].words[0], own.words[0], rtol=0, atol=0)


def test_scores_on_another_base_are_refused(ask, candidate):
    with pytest.raises(BaseModelError, match="abababababab"):
        ask("evaluate", SCORING)


def test_a_request_while_another_tunes_waits_for_it(ask, participant, sixteen):
    import threading

    answers: list[Message] = []
    asking = threading.Thread(target=lambda: answers.append(ask("train", ROUND | {"base": sixteen.fingerprint})))
    with holding(tuned.TUNING):
        asking.start()
        asking.join(0.3)
        assert answers == []
    asking.join(20)
    assert len(answers) == 1


@contextmanager
def holding(lock):
    with lock:
        yield
