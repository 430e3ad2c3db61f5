"""A curve fills its box, y points down, and a mean is that of the values before it."""

from mos_common.pages.curves import HEIGHT, WIDTH, polyline, smoothed


def test_the_extremes_are_at_the_edges():
    points = [(10, 1.0), (20, 3.0), (30, 2.0)]
    assert polyline(points, points) == f"0.0,{HEIGHT:.1f} {WIDTH / 2:.1f},0.0 {WIDTH:.1f},{HEIGHT / 2:.1f}"


def test_two_curves_share_one_scale():
    wide = [(0, 0.0), (4, 4.0)]
    assert polyline([(2, 1.0)], wide) == f"{WIDTH / 2:.1f},{HEIGHT * 3 / 4:.1f}"


def test_equal_values_are_a_line():
    assert polyline([(1, 5.0), (2, 5.0)], [(1, 5.0), (2, 5.0)]) == f"0.0,0.0 {WIDTH:.1f},0.0"


def test_a_mean_is_of_the_last_values_as_far_as_there_are_some():
    assert smoothed([(1, 4.0), (2, 2.0), (3, 6.0)], 2) == [(1, 4.0), (2, 3.0), (3, 4.0)]
