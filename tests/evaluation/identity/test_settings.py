"""`--set` of the bench changes gradient fusion, and the axes of the study start from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from mos_bench.identity.concepts.bench_concepts import tiny_concepts
from mos_bench.identity.front import PRESERVE, RIDGE, SHARPEN, SINGLE, Front, on_the_front, points
from mos_bench.identity.measuring.methods import AVERAGE, GRADIENT
from mos_bench.identity.options import Options, open_bench
from mos_bench.identity.settings_study import Study
from mos_common.errors import RequestError
from mos_server.fusion.methods.gradient import GradientSettings


def test_set_changes_gradient_fusion_and_no_other_method():
    assert GRADIENT.changed(["preserve=2"]).settings == GradientSettings(preserve=2.0)
    assert AVERAGE.changed(["preserve=2"]) == AVERAGE
    with pytest.raises(RequestError, match="did you mean preserve"):
        GRADIENT.changed(["preserv=2"])


def test_set_is_refused_where_it_would_be_ignored():
    with pytest.raises(RequestError, match="--only curve"):
        Options(Path("out"), sets=("preserve=2",))
    assert Options(Path("out"), parts=("curve",), sets=("preserve=2",)).sets == ("preserve=2",)


def test_the_settings_study_starts_from_the_given_settings():
    settings = Study(Path("out"), only=("ridge",), sets=("preserve=2",)).settings()
    assert settings["defaults"] == GradientSettings(preserve=2.0)
    assert settings["ridge 0.3"] == GradientSettings(preserve=2.0, ridge=0.3)


def test_concepts_that_do_not_exist_are_refused():
    with pytest.raises(RequestError, match="--concepts none: choose from first, alike, all"):
        Study(Path("out"), concepts="none")
    with pytest.raises(RequestError, match="--concepts FOLDER need each other"):
        Options(Path("out"), concepts="none")


@pytest.mark.parametrize("which", ["first", "alike", "all"])
def test_a_bench_opens_on_the_concepts_that_are_asked_for(which, tiny, tmp_path):
    bench = open_bench(Options(tmp_path, concepts=which), tiny)
    with closing(bench.cache):
        assert bench.concepts == tiny_concepts(which)
        most = 64 if which == "all" else 32
        assert bench.counts_in("test", (14, 32, 64)) == [n for n in (14, 32, 64) if n <= most]


@pytest.mark.parametrize("kind", [Options, Study])
def test_a_split_that_does_not_exist_is_refused(kind):
    with pytest.raises(RequestError, match="--split train: choose dev or test"):
        kind(Path("out"), half="train")


def test_the_front_has_the_presets_the_rivals_and_every_choice_once():
    named = points()
    assert {"average", "sum-tuned", "preset identity", "preset faithful"} <= named.keys()
    ours = [m.settings.terms for m in named.values() if isinstance(m.settings, GradientSettings)]
    assert len(ours) == len(set(ours)) >= len(SHARPEN) * len(RIDGE) * len(PRESERVE)


def test_a_point_is_on_the_front_if_none_is_better_in_both():
    """By hand: b has less accuracy than c at more drift; a and c each are best in one."""
    plotted = {SINGLE: (0.0, 0.9), "a": (0.1, 0.5), "b": (0.2, 0.55), "c": (0.15, 0.6), "d": (0.15, 0.6)}
    assert on_the_front(plotted) == {"a", "c", "d"}


def test_a_point_that_does_not_exist_is_refused():
    with pytest.raises(RequestError, match="--only s 7: choose from average"):
        Front(Options(Path("out")), (3,), only=("s 7",))
