"""`--mark`, and captions with letters and tags that are no marks, from command to file."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from mos_common.concept_file import content_digest, read_concept
from mos_common.kit import Kit, write_kit

NAMED = ("--concept", "<cat>", "--class", "cat")


@pytest.fixture
def folder(make_pictures):
    """A factory of one folder after another with the same pictures, captioned by `texts`."""

    def captioned(name: str, *texts: str) -> Path:
        to = make_pictures(4, name)
        for i, text in enumerate(texts):
            (to / f"{i:02}.txt").write_text(text)
        return to

    return captioned


def test_what_is_tuned_depends_on_the_captions_and_not_on_the_mark(command, folder, random_base_folder, tmp_path):
    how = ("--base", random_base_folder(), "--device", "cpu", "--steps", 2, "--set", "watch_every=0")
    written = {
        "v": ("", "V asleep", "V beside <dog> in a V-neck"),
        "tok": ("", "TOK asleep", "<TOK> beside <dog> in a V-neck"),
        "name": ("", "<cat> asleep", "<Cat> beside <dog> in a V-neck"),
        "sks": ("sks", "sks asleep", "sks beside <dog> in a V-neck"),
    }
    digests = {}
    for name, (mark, *texts) in written.items():
        flags = ("--mark", mark) if mark else ()
        code, _, err = command("tune", folder(name, *texts), *NAMED, *how, *flags, "--out", f"{name}.safetensors")
        assert code == 0, err
        digests[name] = content_digest(read_concept(tmp_path / f"{name}.safetensors"))
    assert len(set(digests.values())) == 1, digests
    code, _, err = command("tune", tmp_path / "sks", *NAMED, *how, "--out", "other.safetensors")
    assert code == 0, err
    assert content_digest(read_concept(tmp_path / "other.safetensors")) != digests["sks"]


def test_check_shows_what_each_caption_becomes(command, folder):
    cats = folder("cats", "a woman in a V-neck", "Henry V on a horse", "TOK, TOK's hat")
    code, out, err = command("check", cats, "--concept", "<cat>")
    assert code == 0, err
    assert "captions: 3 of 4" in out
    assert "00.png: 'a woman in a V-neck' becomes '<cat>, a woman in a V-neck'" in out
    assert "01.png: 'Henry V on a horse' becomes '<cat>, Henry V on a horse'" in out
    assert '02.png: "TOK, TOK\'s hat" becomes "<cat>, <cat>\'s hat"' in out
    code, out, _ = command("check", cats)
    assert "becomes 'V, a woman in a V-neck'" in out
    code, out, _ = command("check", cats, "--concept", "<cat>", "--mark", "woman")
    assert "'a woman in a V-neck' becomes 'a <cat> in a V-neck'" in out


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--mark", "skz"), 3, "--mark skz: none of the 2 captioned pictures"),
        (("--mark", ""), 2, "--mark ''"),
        ((), 3, "in 2 ways (sks"),
    ],
)
def test_check_tune_and_join_refuse_the_same_marks(command, folder, random_base_folder, tmp_path, flags, code, said):
    cats = folder("cats", "V asleep", "TOK awake")
    said = said if flags else "in 2 ways (V in 00.txt, TOK in 01.txt)"
    address, tomorrow = "127.0.0.1:1", dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    kit = Kit(
        server_id="0" * 32, name="alice", fleet=address, mos=address, ca="-----BEGIN CERTIFICATE-----\n",
        token="t" * 32, expires=tomorrow,
        base="ab" * 32, base_name="tiny", signing_key="-----BEGIN PUBLIC KEY-----\n",
    )  # fmt: skip
    write_kit(kit, tmp_path / "a.kit")
    for run in (("check", cats), ("tune", cats, *NAMED), ("join", tmp_path / "a.kit", cats, *NAMED)):
        exit_code, _, err = command(*run, *flags, *(() if run[0] == "join" else ("--base", random_base_folder())))
        assert exit_code == code, (run, err)
        assert said in err
