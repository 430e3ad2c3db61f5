"""The demo's picture is judged by whom its halves look like, and shown as it was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mos_bench.demo import prepare
from mos_bench.showcase import ENLARGED, SEEDS, WIDTH, draw_command, judge, poster, verdict


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("demo"))


def side_by_side(left, right) -> list[Image.Image]:
    """A real picture of each beside the other, for every seed."""
    halves = []
    for who in (left, right):
        files = sorted(who.pictures.glob("*.png"))
        halves.append([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return [Image.fromarray(np.concatenate([halves[0][k], halves[1][k]], axis=1)) for k in SEEDS]


def test_real_pictures_are_recognised_on_their_side_and_have_faces(tiny, people):
    sunny, _, tom = people
    subjects = judge(tiny, side_by_side(tom, sunny), tom, sunny, people)
    assert [(each.side, each.who, each.seen_as) for each in subjects] == [
        *[("left", "<tom>", "<tom>")] * 4,
        *[("right", "<sunny>", "<sunny>")] * 4,
    ]
    assert sum(each.face for each in subjects) >= 6  # some mouths are a pixel high


def test_of_people_who_changed_places_nobody_is_recognised(tiny, people):
    sunny, _, tom = people
    subjects = judge(tiny, side_by_side(sunny, tom), tom, sunny, people)
    assert verdict(subjects).startswith("0 of 8 people recognised")


def test_a_picture_without_anybody_has_no_face(tiny, people):
    sunny, _, tom = people
    blank = [Image.new("RGB", (WIDTH, WIDTH // 2), "tan")] * len(SEEDS)
    assert verdict(judge(tiny, blank, tom, sunny, people)).endswith("eyes and mouth found in 0")


def test_the_poster_has_every_pixel_of_every_picture_enlarged_without_blur(tiny, people):
    sunny, _, tom = people
    drawn = side_by_side(tom, sunny)
    sheet = np.asarray(poster(drawn, judge(tiny, drawn, tom, sunny, people)))
    assert sheet.shape[1] >= 1000
    for k, picture in enumerate(drawn):
        top, left = (8 + k // 2 * (64 * ENLARGED + 8)), (8 + k % 2 * (WIDTH * ENLARGED + 8))
        shown = sheet[top : top + 64 * ENLARGED, left : left + WIDTH * ENLARGED]
        for dy, dx in ((0, 0), (ENLARGED - 1, ENLARGED - 1)):
            np.testing.assert_array_equal(shown[dy::ENLARGED, dx::ENLARGED], np.asarray(picture))


def test_the_command_gives_each_a_half_and_draws_seeds_that_nobody_chose(tmp_path, people):
    sunny, _, tom = people
    words = [str(word) for word in draw_command(tmp_path, tom, sunny)]
    regions = [words[i + 1] for i, word in enumerate(words) if word == "--region"]
    assert [tom.token in region for region in regions] == [True, False]
    assert [sunny.token in region for region in regions] == [False, True]
    assert words[words.index("--seeds") + 1] == "0-3"
