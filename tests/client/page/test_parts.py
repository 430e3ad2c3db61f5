"""Names of files are never paths; a tuning obeys its file; consent is to one file's bytes."""

import threading
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from mos_client.federation import consent as consents
from mos_client.federation.activity import read_activity, reported
from mos_client.federation.consent import await_consent, consented, take_back
from mos_client.federation.session import SETTINGS
from mos_client.page.application import participant_page
from mos_client.page.desk import Desk
from mos_client.page.pictures import safe_name
from mos_client.tuning.steering import Steering, Wanted
from mos_common.digests import digest_of_bytes
from mos_common.errors import NetworkError, RequestError
from mos_common.messages import Upload, upload_content
from mos_common.pages.access import Access, Role


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("cat.png", "cat.png"),
        ("../../.ssh/cat.PNG", "cat.PNG"),
        ("C:\\pictures\\my cat.jpg", "my-cat.jpg"),
        ("<script>x</script>.png", "script-.png"),
        ("01.mask.png", "01.mask.png"),
        ("-rf.txt", "rf.txt"),
    ],
)
def test_a_strangers_file_name_is_made_plain(given, kept):
    assert safe_name(given) == kept


@pytest.mark.parametrize("given", ["x.html", "..", "x.png/", ".png", "a.svg", "", "x.png\0.exe"])
def test_other_files_are_not_kept(given):
    with pytest.raises(RequestError, match="neither a picture nor a caption"):
        safe_name(given)


def test_a_damaged_state_folder_does_not_close_the_page(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / SETTINGS).write_text("{")
    access = Access(frozenset({"127.0.0.1:8000"}), {"secret": Role.ACT})
    visitor = TestClient(participant_page(Desk(tmp_path), access), base_url="http://127.0.0.1:8000")
    answer = visitor.get("/?token=secret")
    assert str(tmp_path / "cat") in answer.text, "it says which"
    assert "Go on" in answer.text, "another concept can be begun"


def test_a_tuning_saves_before_it_stops_and_runs_on_after_a_pause(tmp_path):
    steering, saved = Steering.of(tmp_path), []
    steering.obey(1, lambda: saved.append(1))
    assert saved == []
    steering.want(Wanted.PAUSE)
    paused = threading.Thread(target=steering.obey, args=(2, lambda: saved.append(2)))
    paused.start()
    paused.join(0.3)
    assert paused.is_alive()
    steering.want(Wanted.RUN)
    paused.join(10)
    assert saved == [2]
    steering.want(Wanted.STOP)
    with pytest.raises(RequestError, match="stopped after step 3"):
        steering.obey(3, lambda: saved.append(3))
    assert saved == [2, 3]


def test_what_is_no_order_is_none(tmp_path):
    steering = Steering.of(tmp_path)
    steering.file.write_bytes(b"\xff\xfe rm")
    assert steering.wanted is Wanted.RUN


def test_only_the_file_that_was_agreed_to_is_sent(tmp_path, monkeypatch):
    """The digest is that of the bytes in the reply, not of what lies on the disk by now."""
    file = tmp_path / "cat.safetensors"
    file.write_bytes(b"one")
    monkeypatch.setattr(consents, "tuned_already", lambda session: file)
    session = SimpleNamespace(state=tmp_path, own=False)
    reply = SimpleNamespace(content=upload_content(Upload(b"one", 1.0)))
    sent = threading.Event()

    def send():
        await_consent(session, reply, threading.Event(), lambda line: None)
        sent.set()

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    assert not sent.wait(0.7)
    consents.consent(session, digest_of_bytes(b"one"))
    assert sent.wait(10)
    assert consented(tmp_path) == digest_of_bytes(b"one")
    file.write_bytes(b"two")
    take_back(tmp_path)
    with pytest.raises(NetworkError, match="nothing was sent"):
        await_consent(session, reply, threading.Event(), lambda line: None)


def test_an_activity_says_how_it_ended(tmp_path):
    with reported(tmp_path) as report:
        report.stepping(lambda step: None)(SimpleNamespace(number=2, total=4, loss=0.5))
        report.saying(lambda line: None)("hello")
        now = read_activity(tmp_path)
        assert now.runs
        assert (now.done, now.total, now.loss, now.said) == (2, 4, 0.5, ["hello"])
    assert read_activity(tmp_path).stage == "finished"
    with pytest.raises(RequestError), reported(tmp_path):
        raise RequestError("no such cat")
    assert read_activity(tmp_path).trouble == "no such cat"


def test_a_damaged_activity_is_none(tmp_path):
    (tmp_path / "activity.json").write_text('{"process": [1]}')
    assert read_activity(tmp_path) is None
