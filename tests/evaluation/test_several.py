"""Several in a picture: who stands where, what is cut out, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mos_bench import several
from mos_bench.identity.concepts.tuning import SHIPPED, TunedConcepts
from mos_bench.recognising import Recogniser
from mos_bench.several import LAYOUTS, WAYS, Layout, Row, packaged, run_several, sentence
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_server.fusion.methods.gradient import GradientSettings

BRIEFLY = GradientSettings(steps=1, contexts=("V in the snow",), ordinary=("a dog",))


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory) -> TunedConcepts:
    return TunedConcepts(tiny, tmp_path_factory.mktemp("several"), tuned=SHIPPED)


def test_everybody_stands_at_every_place_once(tuned):
    concepts = packaged(tuned)
    assert len(concepts) == 16
    for layout in LAYOUTS:
        scenes = list(layout.scenes(concepts))
        for k in range(len(layout.spans)):
            standing = [scene[k] for scene in scenes]
            assert len(set(standing)) == len(standing) == sum(c.person or not layout.people for c in concepts)
        assert all(len(set(scene)) == len(scene) for scene in scenes)


def test_the_part_of_a_region_is_square_and_around_its_middle():
    columns = torch.arange(128.0).expand(3, 64, 128)
    apart, overlapping = LAYOUTS[0], LAYOUTS[3]
    assert [apart.part(columns, k)[0, 0, [0, -1]].tolist() for k in (0, 1)] == [[0, 63], [64, 127]]
    # 30 % of the picture is in both regions, whose middles are at 0.325 and 0.675
    (_, right), (left, _) = overlapping.spans
    assert right - left == pytest.approx(0.3)
    assert [overlapping.part(columns, k)[0, 0, [0, -1]].tolist() for k in (0, 1)] == [[10, 73], [54, 117]]
    three = torch.arange(192.0).expand(3, 64, 192)
    assert [LAYOUTS[1].part(three, k)[0, 0, 0].item() for k in range(3)] == [0, 64, 128]


def test_the_recogniser_knows_pictures_that_it_was_shown_and_held_back_ones(tiny, tuned):
    concepts = packaged(tuned)[:4]
    shown = Recogniser.of(tiny, {each.name: tuned.pictures(each) for each in concepts})
    for concept in concepts:
        pictures = load_pictures(find_pictures(tuned.pictures(concept)), tiny.picture_size)
        named = shown.names(tiny.decode_latents(tiny.encode_pictures(pictures)))
        assert named.count(concept.name) >= len(named) - 1


def test_a_sentence_names_all_from_left_to_right():
    assert sentence(["<a>", "a cat"], "in a room") == "<a> on the left and a cat on the right in a room"
    assert sentence(["<a>", "<b>", "<c>"], "in a room") == "<a> and <b> and <c> in a room"


def test_every_way_of_every_layout_is_counted_and_shown(monkeypatch, tmp_path: Path):
    """Briefly: three concepts, two layouts, one step. Counts are of all pictures of all scenes."""
    monkeypatch.setattr(several, "FUSED", 3)
    monkeypatch.setattr(several, "LAYOUTS", LAYOUTS[:1] + LAYOUTS[3:])
    rows = run_several(tmp_path, seeds=2, steps=1, settings=BRIEFLY)
    assert [(row.layout, row.way) for row in rows] == [
        (layout, way) for layout in ("two", "two, 30 % overlap") for way in WAYS
    ]
    assert {(row.pictures, row.subjects) for row in rows} == {(6, 12)}
    assert all(2 * row.all_in <= row.recognised for row in rows)
    assert len(json.loads((tmp_path / "several.json").read_bytes())["rows"]) == len(rows)
    assert len(list(tmp_path.glob("*.png"))) == len(rows)


def test_a_row_says_shares_and_counts():
    assert str(Row("two", "regions", 84, 63, 42, 21)) == "| two | regions | 0.750 of 84 | 21 of 42 |"
    assert Layout("one", ((0, 1),)).width == 64
