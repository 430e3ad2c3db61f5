"""A curve as the points of an SVG polyline, which needs no script and no picture."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 600, 120
Points = Sequence[tuple[float, float]]


def polyline(values: Points, within: Points) -> str:
    """Return (x, y) pairs as "x,y x,y …"; `within` fills a box of WIDTH x HEIGHT, y downwards."""
    (left, right), (low, high) = ((min(part), max(part)) for part in zip(*within, strict=True))
    x_scale, y_scale = WIDTH / ((right - left) or 1), HEIGHT / ((high - low) or 1)
    return " ".join(f"{(x - left) * x_scale:.1f},{(high - y) * y_scale:.1f}" for x, y in values)


def smoothed(values: Points, window: int) -> list[tuple[float, float]]:
    """Return each y as the mean of the last `window` ones, which shows a trend below the noise."""
    means = []
    for i, (x, _) in enumerate(values):
        last = [y for _, y in values[max(0, i + 1 - window) : i + 1]]
        means.append((x, sum(last) / len(last)))
    return means
