"""One function judges a tuning before its first step, for all commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mos_client.tuning import judgement, memory_plan
from mos_client.tuning.checkpoint import CHECKPOINT
from mos_client.tuning.judgement import judge, written_bytes
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.tune_folder import tune_folder
from mos_common.errors import ConceptError, MosError, PicturesError, RequestError, StateError


@pytest.fixture
def judged(sixteen, make_pictures, tmp_path) -> Callable[..., object]:
    """Return a function that judges a tuning of five pictures on the random base."""
    pictures = make_pictures(5)

    def of(base=sixteen, out: Path = tmp_path / "cat.safetensors", **changes: object):
        request = {"images": pictures, "concept": "<cat>", "class_word": "cat", "steps": 4} | changes
        return judge(TuneRequest(**request), out, tmp_path / "work", base=base)

    return of


def refused(judged, kind: type[MosError], message: str, **changes: object) -> None:
    with pytest.raises(kind, match=message):
        judged(**changes)


def test_what_can_be_tuned_is_planned(judged, sixteen):
    done = judged(settings={"rank": "2"})
    assert (len(done.tuned_on), len(done.held_back), done.remarks) == (3, 2, [])
    assert (done.settings.rank, done.plan.micro_batch, done.base) == (2, 4, sixteen)


def test_a_concept_that_is_named_too_late_is_refused_with_its_file(judged, tmp_path):
    """Eighteen tokens are read, so V as the nineteenth and twentieth is never seen."""
    (tmp_path / "pictures" / "01.txt").write_text("a " * 18 + "V")
    (tmp_path / "pictures" / "04.txt").write_text("V, and again " + "a " * 20 + "V")
    refused(judged, PicturesError, r"01\.txt, .*04\.txt: .* after the 18 tokens that .* reads .* up to token \d\d")
    (tmp_path / "pictures" / "04.txt").unlink()
    refused(judged, PicturesError, r"pictures/01\.txt: .* up to token 20\)\. Name it earlier")


def test_a_caption_of_which_the_end_is_never_read_is_a_remark(judged, tmp_path):
    (tmp_path / "pictures" / "02.txt").write_text("V " + "a " * 30)
    (remark,) = judged().remarks
    assert "02.txt: longer than the 18 tokens" in remark
    assert "the longest has 32" in remark


def test_words_of_the_method_count(judged, tmp_path):
    """V is the token 17: two words of it fit, three do not."""
    (tmp_path / "pictures" / "00.txt").write_text("a " * 16 + "V")
    judged()
    refused(judged, PicturesError, r"00\.txt", settings={"words": "3"})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"class_word": "<dog>"}, ConceptError, "names a concept"),
        ({"class_word": " "}, ConceptError, "class word"),
        ({"class_word": "cat " * 20}, ConceptError, "'class_word'"),
        ({"author": "x" * 501}, ConceptError, "'author'"),
        ({"licence": "a\nb"}, RequestError, "--licence"),
        ({"settings": {"rank": "17"}}, RequestError, "rank 17 is larger than layer .* at most 16"),
        ({"settings": {"rank": "0"}}, RequestError, "rank 0"),
        ({"settings": {"batch": "0"}}, RequestError, "batch 0"),
        ({"settings": {"learning_rate_unet": "nan"}}, RequestError, "learning_rate_unet"),
        ({"settings": {"learning_rate_unet": "-1"}}, RequestError, "learning_rate_unet"),
        ({"seed": 2**64}, RequestError, "seed 18446744073709551616: expected"),
        ({"steps": 100_001}, RequestError, "100001 steps"),
        ({"vram": 0.0001}, RequestError, "are too few"),
    ],
)
def test_flags_and_texts_that_cannot_be_used_are_refused(judged, changes, kind, message):
    refused(judged, kind, message, **changes)


def test_memory_that_the_weights_alone_exceed_is_refused_without_counting_a_step(judged, monkeypatch):
    monkeypatch.setattr(memory_plan, "kept_bytes", lambda *given, **how: pytest.fail("a step was counted"))
    refused(judged, RequestError, "are too few", vram=1e-6)


def test_memory_that_no_plan_fits_is_refused_after_one_count(judged, monkeypatch, sixteen):
    counted = []
    real = memory_plan.kept_bytes

    def count(base, pictures: int, rank: int, checkpointing: bool) -> int:
        counted.append((pictures, checkpointing))
        return real(base, pictures, rank, checkpointing)

    monkeypatch.setattr(memory_plan, "kept_bytes", count)
    barely = memory_plan.fixed_gib(sixteen, 4) * 1.001
    refused(judged, RequestError, "one picture at a time with gradient checkpointing", vram=barely)
    assert counted == [(1, True)]


def test_a_full_disk_is_found_before_anything_is_written(judged, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(judgement.shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    refused(judged, StateError, r"has 0\.1 MB free, tuning writes up to \d.* MB there .*make room")
    assert not list(tmp_path.glob("cat*"))


def test_an_output_that_cannot_be_written_is_refused(judged, tmp_path):
    (tmp_path / "file").write_text("")
    refused(judged, StateError, "cannot be written", out=tmp_path / "file" / "cat.safetensors")
    refused(judged, StateError, "is a folder", out=tmp_path / "pictures")


@pytest.mark.parametrize("watch", ["0", "2"])
def test_the_room_that_is_asked_for_is_what_is_written(sixteen, make_pictures, tmp_path, watch):
    """A checkpoint and the finished file, each beside its predecessor, and the latents."""
    settings = {"checkpoint_every": "3", "batch": "1", "watch_every": watch}
    request = TuneRequest(make_pictures(5), "<cat>", "cat", steps=4, settings=settings)
    sizes: dict[str, int] = {}

    def look(step) -> None:
        sizes.update({path.name: path.stat().st_size for path in (tmp_path / "work").iterdir()})

    out = tune_folder(request, tmp_path / "cat.safetensors", work=tmp_path / "work", base=sixteen, on_step=look)
    read = TuningSettings.of(sixteen.preset, steps=4, changes=settings)
    finished, running = written_bytes(sixteen, read, 3)
    assert 0.3 * finished < out.stat().st_size < finished
    assert 0.3 * running < sizes[CHECKPOINT] + sizes["latents.safetensors"] < running


def test_tuning_asks_the_same_judge(sixteen, make_pictures, tmp_path):
    folder = make_pictures(5)
    (folder / "00.txt").write_text("a, " * 18 + "V")
    request = TuneRequest(folder, "<cat>", "cat", steps=4)
    with pytest.raises(PicturesError, match=r"00\.txt: the concept is named only after"):
        tune_folder(request, tmp_path / "cat.safetensors", work=tmp_path / "work", base=sixteen)
    assert not (tmp_path / "work").exists()


def test_a_judgement_made_before_is_not_made_again(judged, tmp_path, monkeypatch):
    done = judged(settings={"watch_every": "0", "batch": "1"})
    monkeypatch.setattr("mos_client.tuning.tune_folder.judge", lambda *given, **how: pytest.fail("judged twice"))
    request = replace(done.request, author="Alice")
    assert tune_folder(request, tmp_path / "cat.safetensors", work=tmp_path / "work", judged=done).is_file()
