"""What the page's forms do is what the commands do, and the audit says who asked for it."""

from __future__ import annotations

import shlex
import time

import pytest

from docs.commands import check_command
from mos_common.kit import read_kit
from mos_server.models.sheet import draw_sheet
from mos_server.state.records import CANCELLED, COLLECTING, HELD_BACK, PUBLISHED
from mos_server.state.rotation import rotate_certificate
from server.page.conftest import LOOK, Page, shown
from server.round.conftest import Federation


def commands_shown(text: str) -> list[list[str]]:
    """The words of every command that a page shows."""
    import html
    import re

    found = [html.unescape(each) for each in re.findall(r"<code>(mos-server .*?)</code>", text)]
    return [shlex.split(each) for each in found]


def test_an_invitation_is_a_kit_to_download(page: Page, tmp_path):
    answer = page.post("/people/invite", name="alice", valid="2h")
    assert answer.headers["content-disposition"] == 'attachment; filename="alice.kit"'
    (tmp_path / "alice.kit").write_bytes(answer.content)
    kit = read_kit(tmp_path / "alice.kit")
    assert (kit.name, kit.ca) == ("alice", page.state.pki.authority_pem())
    assert page.journal.participants.enrol(kit.token, "ab" * 32, b"pem") == "alice"
    (act,) = page.acts()
    assert act["who"] == "alice"
    assert {name: act["details"][name] for name in ("act", "by", "role")} == {
        "act": "invite",
        "by": "page",
        "role": "act",
    }
    words = shlex.split(act["details"]["command"])
    assert words == ["mos-server", "invite", str(page.state.path), "alice", "--out", "alice.kit", "--valid", "2h"]
    check_command(words)


@pytest.mark.parametrize(
    "form", [{"name": "../alice"}, {"name": "Alice"}, {"name": ""}, {"name": "alice", "valid": "soon"}]
)
def test_an_invitation_that_cannot_be_is_refused_with_the_reason(page: Page, form: dict):
    answer = page.post("/people/invite", **form)
    assert answer.status_code == 400
    assert "expected a number" in shown(answer) or "at most 32 characters" in shown(answer)
    assert page.journal.participants.invitations() == []


def test_a_barred_name_is_out_and_comes_back_only_on_purpose(federation: Federation, page: Page):
    machine = federation.machine("alice")
    assert "alice is barred" in shown(page.post("/people/bar", name="alice"))
    assert not page.journal.participants.is_admitted(machine.key)
    assert "was barred on" in shown(page.post("/people/invite", name="alice"))
    assert page.post("/people/invite", name="alice", again="yes").status_code == 200
    assert [act["details"]["act"] for act in page.acts()] == ["bar", "invite", "invite"]


def test_one_key_of_a_name_can_be_barred_alone(federation: Federation, page: Page):
    first, second = federation.machine("alice"), federation.machine("alice")
    page.post("/people/bar", name="alice", key=first.key[:16])
    assert not page.journal.participants.is_admitted(first.key)
    assert page.journal.participants.is_admitted(second.key)


def test_a_withdrawn_concept_is_erased_with_its_pictures(federation: Federation, page: Page):
    name = federation.run(federation.machine("alice"), federation.machine("bob"), wait=2)
    sheet = draw_sheet(federation.state, federation.journal, name, lambda: federation.base, print)
    alice, bob = sorted(federation.admitted(name), key=lambda each: each.participant)
    url = f"/rounds/{name}/pictures/{alice.digest}/fused"
    assert page.get(url).headers["content-type"] == "image/webp"
    assert page.get(url, token="").status_code == 403
    answer = page.post("/concepts/withdraw", concept=alice.token)
    assert "is withdrawn" in shown(answer)
    assert page.get(url).status_code == 404
    assert not list(sheet.folder.glob(f"{alice.digest}-*"))
    assert len(list(sheet.folder.glob(f"{bob.digest}-*"))) == 3
    (words,) = commands_shown(answer.text)
    assert words == ["mos-server", "concepts", str(page.state.path), "withdraw", alice.token]
    assert page.post("/concepts/withdraw", concept=alice.token).status_code == 400


def test_a_round_is_asked_for_with_the_settings_of_the_form(page: Page):
    form = {"wait": "3", "deadline": "30m", "min-identity": "-0.5", "review": "yes", "set": "preserve=3\n ridge=0.5 \n"}
    answer = page.post("/rounds/ask", **form)
    assert answer.status_code == 200, shown(answer)
    asked = page.journal.rounds.unfinished()
    assert (asked.settings.wait, asked.settings.deadline_s, asked.settings.review) == (3, 1800, True)
    assert asked.settings.min_identity == -0.5
    assert asked.settings.fusion["settings"] == {"preserve": 3.0, "ridge": 0.5}
    (words,) = commands_shown(answer.text)
    check_command(words)
    assert words[-1] == "--no-follow"
    assert "round-001 is asked" in shown(page.post("/rounds/ask"))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"deadline": "soon"}, "--deadline"),
        ({"wait": "0"}, "--wait 0"),
        ({"set": "no such setting"}, "no such setting"),
        ({"set": "--cancel"}, "--cancel"),
        ({"min-identity": "--cancel"}, "expected a number"),
        ({"method": "--cancel"}, "--cancel"),
        ({"share": "nan"}, "share"),
    ],
)
def test_a_round_that_cannot_be_asked_for_is_refused_with_the_commands_own_words(page: Page, form: dict, said: str):
    answer = page.post("/rounds/ask", **form)
    assert answer.status_code == 400
    assert said in shown(answer)
    assert page.journal.rounds.all() == []


def test_a_running_round_is_cancelled_if_it_is_the_one_that_was_seen(federation: Federation, page: Page):
    name = federation.ask()
    assert "not running any more" in shown(page.post("/rounds/cancel", round="round-000"))
    assert federation.journal.rounds.unfinished() is not None
    page.post("/rounds/cancel", round=name)
    assert federation.status(name) == CANCELLED


def test_a_round_that_is_held_back_on_the_page_is_published_there(federation: Federation, page: Page, network):
    """From holding back to the model: the round runs in between, and the command publishes."""
    machines = [federation.machine(name) for name in ("alice", "bob")]
    name = federation.ask(wait=2)
    federation.journal.rounds.advance(name, COLLECTING)
    assert "will be held back" in shown(page.post("/rounds/hold-back", round=name))
    federation.go_on(name, network(*machines))
    assert federation.status(name) == HELD_BACK
    assert federation.journal.rounds.latest_published() is None
    assert "Publish the model" in shown(page.get(f"/rounds/{name}"))
    assert "Publish the model" not in shown(page.get(f"/rounds/{name}", token=LOOK))
    answer = page.post("/rounds/publish", round=name)
    assert answer.status_code == 200, shown(answer)
    assert federation.status(name) == PUBLISHED
    assert len(federation.tokens(name)) == 2
    assert "only a round that is held back" in shown(page.post("/rounds/publish", round=name))


def test_the_sheet_is_drawn_by_a_process_that_tells_how_far_it_is(federation: Federation, page: Page):
    name = federation.run(federation.machine("alice"))
    answer = page.post("/rounds/sheet", round=name)
    assert "is being drawn" in shown(answer)
    (words,) = commands_shown(answer.text)
    check_command(words)
    # This federation's base is a random one, which no command can load: the page says so.
    until = time.monotonic() + 60
    while "random" not in (text := shown(page.get(f"/rounds/{name}"))) or "Being drawn" in text:
        assert time.monotonic() < until, text
        time.sleep(0.3)
    assert "Draw the contact sheet" in text


def test_every_command_that_the_page_shows_exists_and_is_quoted(federation: Federation, page: Page):
    name = federation.run(federation.machine("alice", federation.file(name="<cat>")))
    federation.machine("bob")
    federation.ask()
    pages = [page.get(path).text for path in ("/people", "/rounds", "/concepts", "/server", f"/rounds/{name}")]
    pages.append(page.get("/rounds/round-002").text)
    found = [words for text in pages for words in commands_shown(text)]
    assert {words[1] for words in found} >= {
        *("invite", "bar", "round", "concepts", "settings", "prune", "rotate", "audit", "sheet", "hold-back"),
    }
    for words in found:
        if words[-1] == "--help":
            continue
        assert words[2] == str(federation.state.path)
        check_command(words)
    assert "withdraw &#39;&lt;alice/cat&gt;&#39;</code>" in pages[2]


def test_an_act_that_the_audit_cannot_take_is_not_done(page: Page, monkeypatch: pytest.MonkeyPatch):
    from mos_common.errors import StateError

    def full(*_: object, **__: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(page.journal.audit, "add", full)
    answer = page.post("/people/invite", name="alice")
    assert "the disk is full" in shown(answer)
    assert page.journal.participants.invitations() == []


def test_a_kit_says_where_the_server_is_now(page: Page, tmp_path):
    """`mos-server rotate` may move a server while it runs."""
    assert page.get("/server").status_code == 200
    rotate_certificate(page.state, "fusion2.example.org")
    (tmp_path / "kit").write_bytes(page.post("/people/invite", name="alice").content)
    assert read_kit(tmp_path / "kit").mos == "fusion2.example.org:9093"
    assert "fusion2.example.org" in shown(page.get("/server"))
