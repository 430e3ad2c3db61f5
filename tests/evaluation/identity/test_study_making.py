"""A study is made of the bench's own drawings, which raters cannot trace back to it."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest
from PIL import Image

import mos_bench.study.making as making
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.methods import AVERAGE, Method
from mos_bench.identity.storage.cache import TABLES
from mos_bench.study.making import StudyOptions, cells_of, make
from mos_bench.study.page import KEY
from mos_bench.study.trials import read_key
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.pictures import as_image
from mos_server.fusion.methods.gradient import GradientSettings

METHODS = ("single", "average", "gradient")
GRADIENT = Method("gradient", GradientSettings(steps=1, contexts=("V in the snow",), ordinary=("a dog",)))
PROTOCOL = Protocol(prompts=1, seeds=1, probed=2, how=Drawing(steps=1))


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "CURVE", (AVERAGE, GRADIENT))
    return StudyOptions(tmp_path / "study", tmp_path / "out", METHODS, count=2, pairs=3, catches=2, protocol=PROTOCOL)


def test_pairs_show_the_benchs_drawings_under_their_prompt_and_draw_nothing_twice(open_bench, options, drawn):
    bench = open_bench(PROTOCOL)
    key = make(bench, options)
    assert read_key(options.out / KEY) == key
    trials = [trial for trial in key.trials if not trial.catch]
    assert [set(trial.pictures.values()) for trial in trials[::3]] == [set(pair) for pair in combinations(METHODS, 2)]
    assert len(trials) == 3 * 3
    assert len(key.trials) == 3 * 3 + 2
    assert sum(drawn.values()) == 3 * len(METHODS)  # a drawing serves every pair that it is in
    kept = {bytes(as_image(bench.cache.picture(name)).tobytes()) for name in stored(bench)["drawings"]}
    for trial in trials:
        for name in trial.pictures:
            with Image.open(options.out / "page" / "pictures" / f"{name}.png") as picture:
                assert picture.tobytes() in kept
    again = StudyOptions(options.out.with_name("again"), options.kept, METHODS, 2, pairs=3, protocol=PROTOCOL)
    assert {trial.prompt for trial in make(bench, again).trials} >= {trial.prompt for trial in trials}
    assert sum(drawn.values()) == 3 * len(METHODS)


def test_no_key_and_no_file_of_the_cache_is_in_the_page(open_bench, options):
    bench = open_bench(PROTOCOL)
    key = make(bench, options)
    text = (options.out / "page" / "index.html").read_text()
    names = " ".join(path.name for path in (options.out / "page").rglob("*"))
    entries = stored(bench)
    traces = [key_ for table in entries.values() for key_ in table]
    traces += [*METHODS, *(concept.slug for concept in bench.concepts), bench.base.fingerprint[:12]]
    assert len(traces) > 10
    assert not [trace for trace in traces if trace in text or trace in names]
    digests = {hashlib.sha256(content).hexdigest() for content in entries["drawings"].values()}
    for file in (options.out / "page" / "pictures").iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() not in digests
    assert len(key.trials) == 11


def test_concepts_take_turns_and_the_choice_is_the_same_every_time(open_bench):
    bench = open_bench(Protocol(prompts=2, seeds=2, probed=2, how=Drawing(steps=1)))
    concepts = bench.half("test")
    cells = cells_of(bench, concepts, 7)
    assert [cell.concept.name for cell in cells] == [concepts[i % 2].name for i in range(7)]
    assert cells == cells_of(bench, concepts, 7)
    assert len({(cell.concept.name, cell.place) for cell in cells}) == 7
    assert len(cells_of(bench, concepts, 1000)) == 2 * 8 * 2  # concepts x prompts x seeds
    for cell in cells:
        request = bench.drawings.requests(None, cell.concept)[cell.place]
        assert request.seed == cell.seed
        assert request.prompt == cell.text.replace("V", cell.concept.name)


@pytest.mark.parametrize("methods", [("single",), ("single", "single"), ("single", "magic")])
def test_a_study_needs_two_methods_that_exist(methods, tmp_path):
    with pytest.raises(RequestError, match="--methods"):
        StudyOptions(tmp_path, tmp_path, methods)


def stored(bench) -> dict[str, dict[str, bytes]]:
    """Everything that the cache holds, by table."""
    return {table: dict(bench.cache._database.execute(f"SELECT key, value FROM {table}")) for table in TABLES}
