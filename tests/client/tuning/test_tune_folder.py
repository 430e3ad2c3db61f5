"""Tuning a folder into a file: bit-identical after any interruption, and all its errors."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from mos_client.pictures.examples import LATENTS
from mos_client.pictures.folder import find_pictures
from mos_client.tuning.checkpoint import CHECKPOINT, KEPT
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.tune_folder import progress_picture, tune_folder
from mos_common.concept import check_fits
from mos_common.concept_file import concept_from_bytes, content_digest, read_concept
from mos_common.errors import BaseModelError, ConceptError, MosError, PicturesError, RequestError, StateError

STEPS = 4


OFTEN = {"checkpoint_every": "2", "batch": "1", "watch_every": "0"}


@pytest.fixture
def pictures(make_pictures) -> Path:
    return make_pictures(5)


@pytest.fixture
def tune(sixteen, pictures, tmp_path):
    """Return a function that tunes on the random base and returns the file's path."""

    def run(name: str = "cat", **changes: object) -> Path:
        asked = {field.name for field in fields(TuneRequest)}
        request = {"images": pictures, "concept": "<cat>", "class_word": "cat", "steps": STEPS, "settings": OFTEN}
        request |= {key: value for key, value in changes.items() if key in asked}
        run = {"out": tmp_path / f"{name}.safetensors", "work": tmp_path / "work"}
        run |= {"base": sixteen} if "base" not in changes else {}
        run |= {"base": changes["loaded"]} if "loaded" in changes else {}
        run |= {key: value for key, value in changes.items() if key not in (*asked, "loaded")}
        return tune_folder(TuneRequest(**request), **run)

    return run


@pytest.fixture(scope="module")
def kept() -> dict[str, bytes]:
    """The bytes of an undisturbed run: tuned once, since every test uses the same settings."""
    return {}


@pytest.fixture
def whole(tune, kept, tmp_path) -> bytes:
    """Return the bytes that an undisturbed run writes."""
    if not kept:
        out = tune("whole")
        kept["bytes"] = out.read_bytes()
        out.unlink()
    return kept["bytes"]


def stop_after(step: int):
    def stop(done) -> None:
        if done.number == step:
            raise KeyboardInterrupt

    return stop


# The same settings in another process, killed after the step in its second argument (0: never).
ALONE = """
import os, signal, sys
from pathlib import Path
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.tune_folder import tune_folder

def kill(step):
    if step.number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

folder, base, pictures = Path(sys.argv[1]), sys.argv[3], Path(sys.argv[4])
settings = {"checkpoint_every": "2", "batch": "1", "watch_every": sys.argv[5]}
request = TuneRequest(pictures, "<cat>", "cat", base=base, steps=4, device="cpu", settings=settings)
tune_folder(request, folder / "cat.safetensors", work=folder / "work", on_step=kill)
"""


def alone(folder: Path, killed_after: int, base: str, pictures: Path, watch: int = 0) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", ALONE, str(folder), str(killed_after), base, str(pictures), str(watch)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    ("text", "flag"), [("author", "--author"), ("licence", "--licence"), ("class_word", "--class")]
)
def test_what_would_travel_unseen_is_refused_before_pictures_are_looked_at(text, flag):
    values = {"images": Path("nowhere"), "concept": "<cat>", "class_word": "cat"}
    with pytest.raises(RequestError, match=rf"{flag} .*U\+200B \(ZERO WIDTH SPACE\)"):
        TuneRequest(**values | {text: "a\u200bb"})
    assert getattr(TuneRequest(**values | {text: "Jose\u0301"}), text) == "Jos\u00e9"


def test_the_file_is_a_concept_that_fits_its_base(sixteen, tune, tmp_path):
    out = tune(author="Alice", licence="CC0")
    concept = read_concept(out)
    check_fits(concept, sixteen)
    assert (concept.name, concept.class_word, concept.author, concept.licence) == ("<cat>", "cat", "Alice", "CC0")
    assert concept.pairs.keys() == {layer.name for layer in sixteen.layout.attention}
    assert {pair.rank for pair in concept.pairs.values()} == {4}
    assert concept.words[0].shape == (len(sixteen.layout.cross_attentions), 2, sixteen.token_table.shape[1])
    assert {tensor.dtype for pair in concept.pairs.values() for tensor in (pair.A, pair.B)} == {torch.float16}


def test_nothing_is_left_beside_the_file(tune, tmp_path):
    tune()
    assert {p.name for p in tmp_path.iterdir()} == {"cat.safetensors", "pictures"}


def test_every_step_is_reported(tune):
    reported = []
    tune(on_step=lambda step: reported.append((step.number, step.total)))
    assert reported == [(n, STEPS) for n in range(1, STEPS + 1)]


def test_held_back_pictures_change_nothing(tune, whole, pictures):
    """The last two are for scoring: replacing them gives the same file."""
    for picture in find_pictures(pictures)[-2:]:
        picture.path.write_bytes((pictures / "00.png").read_bytes())
    assert tune().read_bytes() == whole


@pytest.mark.parametrize("change", [{"seed": 1}, {"class_word": "dog"}, {"steps": STEPS - 1}])
def test_another_seed_class_or_length_is_another_concept(tune, whole, change):
    assert content_digest(read_concept(tune(**change))) != content_digest(concept_from_bytes(whole))


def test_author_and_licence_change_the_file_and_not_the_digest(tune, whole):
    edited = tune(author="Alice", licence="MIT")
    assert edited.read_bytes() != whole
    assert content_digest(read_concept(edited)) == content_digest(concept_from_bytes(whole))


def test_the_same_file_over_two_processes_and_across_a_kill(tune, whole, random_base_folder, pictures, tmp_path):
    """A run killed (SIGKILL) after step 3 of 4 and resumed writes the same bytes."""
    base, other, broken = str(random_base_folder()), tmp_path / "other", tmp_path / "broken"
    finished = alone(other, 0, base, pictures)
    assert finished.returncode == 0, finished.stderr
    killed = alone(broken, 3, base, pictures)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(p.name for p in broken.rglob("*") if p.is_file())
    assert left == [CHECKPOINT, LATENTS], "no half-written file"

    steps = []
    resumed = tune("resumed", work=broken / "work", on_step=lambda step: steps.append(step.number))
    assert steps == [3, 4]
    assert resumed.read_bytes() == (other / "cat.safetensors").read_bytes() == whole


def test_an_interruption_goes_on_where_the_last_checkpoint_was(tune, whole, caplog, sixteen):
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    assert not any(module._forward_hooks for module in sixteen.unet.modules()), "the base is free again"
    caplog.set_level(logging.INFO, "mos_client")
    steps = []
    assert tune(on_step=lambda step: steps.append(step.number)).read_bytes() == whole
    assert steps == [3, 4]
    assert "resuming from step 2 of 4" in caplog.text


def test_what_was_seen_on_the_way_survives_a_kill_too(tune, random_base_folder, pictures, tmp_path):
    """Killed after step 3: concept and progress picture are those of an undisturbed run."""
    broken, watching = tmp_path / "broken", OFTEN | {"watch_every": "1"}
    killed = alone(broken, 3, str(random_base_folder()), pictures, watch=1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, undisturbed = tune("resumed", work=broken / "work", settings=watching), tune(settings=watching)
    assert resumed.read_bytes() == undisturbed.read_bytes()
    assert progress_picture(resumed).read_bytes() == progress_picture(undisturbed).read_bytes()


def test_a_run_that_an_earlier_release_began_goes_on(tune, whole, sixteen):
    """Its checkpoint has the base's old fingerprint."""
    with pytest.raises(KeyboardInterrupt):
        tune(loaded=replace(sixteen, fingerprint=sixteen.legacy_fingerprint), on_step=stop_after(3))
    steps = []
    assert tune(on_step=lambda step: steps.append(step.number)).read_bytes() == whole
    assert steps[0] == 3


def test_anew_means_from_the_first_step(tune):
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    steps = []
    tune(resume=False, on_step=lambda step: steps.append(step.number))
    assert steps[0] == 1


@pytest.mark.parametrize("change", ["seed", "steps", "class_word", "pictures", "captions"])
def test_another_folder_or_setting_starts_anew(tune, pictures, caplog, change):
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    settings = {"seed": {"seed": 1}, "steps": {"steps": 3}, "class_word": {"class_word": "dog"}}.get(change, {})
    if change == "pictures":
        (pictures / "00.png").write_bytes((pictures / "01.png").read_bytes())
    if change == "captions":
        (pictures / "00.txt").write_text("V asleep")
    steps = []
    resumed = tune(on_step=lambda step: steps.append(step.number), **settings).read_bytes()
    assert steps[0] == 1
    assert "belongs to other pictures or settings" in caplog.text
    assert tune("fresh", **settings).read_bytes() == resumed


def test_a_mistyped_flag_costs_no_run(tune, whole, tmp_path, caplog):
    """The checkpoint of other settings is kept, resumed when they are back, and gone at its end."""
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    with pytest.raises(KeyboardInterrupt):
        tune(steps=STEPS + 1, on_step=stop_after(4))
    (aside,) = (tmp_path / "work").glob("checkpoint-*")
    assert (
        f"step 2) belongs to other pictures or settings: tuning starts anew. It is kept as {aside.name}" in caplog.text
    )
    steps = []
    assert tune(on_step=lambda step: steps.append(step.number)).read_bytes() == whole
    assert steps == [3, 4]
    assert not aside.exists()
    steps.clear()
    tune("longer", steps=STEPS + 1, on_step=lambda step: steps.append(step.number))
    assert steps == [3, 4, 5]
    assert not (tmp_path / "work").exists()


def test_checkpoints_of_other_settings_are_kept_up_to_a_number(tune, tmp_path, caplog):
    for seed in range(6):
        with pytest.raises(KeyboardInterrupt):
            tune(seed=seed, on_step=stop_after(2 + 1))
    assert len(list((tmp_path / "work").glob("checkpoint-*"))) == KEPT
    assert caplog.text.count("it is removed") == 6 - 1 - KEPT
    steps = []
    tune(seed=4, on_step=lambda step: steps.append(step.number))
    assert steps[0] == 3, "the newest are those that are kept"


def test_a_licence_may_change_between_interruption_and_end(tune):
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    steps = []
    tune(licence="CC0", on_step=lambda step: steps.append(step.number))
    assert steps[0] == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "no metadata", "no tensors", "a bit"])
def test_a_damaged_checkpoint_starts_anew(tune, whole, tmp_path, caplog, damage):
    with pytest.raises(KeyboardInterrupt):
        tune(on_step=stop_after(3))
    checkpoint = tmp_path / "work" / CHECKPOINT
    data = checkpoint.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    without = {
        "no metadata": b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "no tensors": header[: header.index(b"},") + 1] + b"}",
    }.get(damage, b"")
    checkpoint.write_bytes(
        {"cut": data[:-100], "empty": b"", "noise": b"\xff" * 500, "a bit": data[:-1] + bytes([data[-1] ^ 1])}.get(
            damage, len(without).to_bytes(8, "little") + without
        )
    )
    steps = []
    assert tune(on_step=lambda step: steps.append(step.number)).read_bytes() == whole
    assert steps[0] == 1
    assert "is damaged: tuning starts anew" in caplog.text


def test_a_checkpoint_that_cannot_be_read_is_an_error_not_a_loss(tune, tmp_path):
    (tmp_path / "work" / CHECKPOINT).mkdir(parents=True)
    with pytest.raises(StateError, match=f"{CHECKPOINT} cannot be read"):
        tune()


def never(_step) -> None:
    pytest.fail("tuned before it looked")


def refused(tune, kind: type[MosError], message: str, **changes: object) -> None:
    with pytest.raises(kind, match=message):
        tune(on_step=never, **changes)


def test_what_cannot_be_tuned_is_refused_before_anything_is_tuned(tune, make_pictures, tmp_path):
    refused(tune, RequestError, "breaks the grammar", concept="cat")
    refused(tune, RequestError, "0 steps", steps=0)
    refused(tune, PicturesError, "no folder of pictures", images=tmp_path / "nowhere")
    refused(tune, PicturesError, "2 pictures", images=make_pictures(2, "two"))
    refused(tune, BaseModelError, "no base model at /nowhere", base="/nowhere/model")
    refused(tune, ConceptError, "class word", class_word=" ")


def test_texts_that_do_not_fit_into_the_file_are_refused_before_anything_is_tuned(tune):
    refused(tune, ConceptError, "metadata field 'author'", author="x" * 501)
    refused(tune, RequestError, r"--licence .*U\+000A", licence="a\nb")
    refused(tune, ConceptError, "metadata field 'class_word'", class_word="cat " * 20)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_tuned(tune, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tune, StateError, "cannot be written", out=tmp_path / "file" / "cat.safetensors")
    (tmp_path / "folder").mkdir()
    refused(tune, StateError, "is a folder", out=tmp_path / "folder")


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "the disk is full; make room"), (errno.EROFS, "give this user the right")]
)
def test_a_disk_that_fills_up_loses_no_more_than_two_steps(tune, whole, tmp_path, monkeypatch, number, message):
    """Writing the finished file fails; the checkpoint remains and the next run resumes."""

    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    def fill(step) -> None:
        if step.number == STEPS:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StateError, match=message):
        tune(on_step=fill)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "work"]
    monkeypatch.undo()
    steps = []
    assert tune(on_step=lambda step: steps.append(step.number)).read_bytes() == whole
    assert steps == [3, 4]
