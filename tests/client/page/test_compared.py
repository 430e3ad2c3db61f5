"""Before and after fusion are drawn alike, one after the other."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mos_client.page.compared import compare, compared
from mos_client.page.work import Job
from mos_common.errors import RequestError


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The drawings that are begun, in order."""
    names = list[str]()

    def start(job, words):
        names.append(job.name)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.touch()

    monkeypatch.setattr(Job, "start", start)
    return names


def standing_in(state: Path, *, models: bool = True) -> SimpleNamespace:
    request = SimpleNamespace(concept="<cat>", base="tiny")
    return SimpleNamespace(
        state=state,
        models=[state / "models" / "round-002"] if models else [],
        concept_file=state / "cat.safetensors",
        token="<alice/cat>",
        session=SimpleNamespace(request=request),
    )


def test_words_and_seeds_are_the_same_on_both_sides(tmp_path):
    before, after = compared(standing_in(tmp_path))
    mine, fused = ([word for word in side.words if word != side.file] for side in (before, after))
    assert mine[1:3] == [tmp_path / "cat.safetensors", "a photo of <cat>"]
    assert fused[1:3] == [tmp_path / "models" / "round-002", "a photo of <alice/cat>"]
    assert mine[3:] == fused[3:]


def test_the_second_is_begun_when_the_first_is_drawn(tmp_path, begun):
    standing = standing_in(tmp_path)
    compare(standing)
    assert begun == ["before-round-002"]
    before, _ = compared(standing)
    assert begun == ["before-round-002"]
    before.file.parent.mkdir(parents=True)
    before.file.touch()
    compared(standing)
    compared(standing)
    assert begun == ["before-round-002", "after-round-002"]


def test_nothing_is_drawn_before_there_is_a_model(tmp_path, begun):
    with pytest.raises(RequestError, match="nothing to compare yet"):
        compare(standing_in(tmp_path, models=False))
    assert begun == []
