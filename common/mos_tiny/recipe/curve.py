"""The learning curve of a training run: `curve.json` and `curve.png` beside its weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mos_common.files import write_atomically

WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = ((40, 90, 200), (200, 80, 40), (40, 150, 90), (140, 80, 190))


class LearningCurve:
    """Points measured during training: two numbers for progress, then the measurements."""

    def __init__(self, folder: Path) -> None:
        self._json, self._png = folder / "curve.json", folder / "curve.png"
        self.points: list[dict[str, float]] = json.loads(self._json.read_text()) if self._json.is_file() else []

    def add(self, **point: float) -> None:
        """Append a point and write both files."""
        self.points.append({name: round(float(value), 5) for name, value in point.items()})
        write_atomically(self._json, json.dumps(self.points, indent=0).encode())
        drawn = io.BytesIO()
        plot(self.points).save(drawn, "PNG")
        write_atomically(self._png, drawn.getvalue())


def plot(points: list[dict[str, float]]) -> Image.Image:
    """Plot the measurements (third number onwards) over the first number of each point."""
    across, _, *names = points[-1]
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    xs = [point[across] for point in points]
    ys = [point[name] for point in points for name in names if name in point]
    low, high, last = min(ys), max(ys), max(xs) or 1.0
    spread = (high - low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + x / last * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - (y - low) / spread * (HEIGHT - 2 * MARGIN),
        )

    pen.rectangle((MARGIN, MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN), outline=(200, 200, 200))
    for name, colour in zip(names, _colours(len(names)), strict=True):
        line = [at(point[across], point[name]) for point in points if name in point]
        pen.line(line, fill=colour, width=2)
        for x, y in line:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((MARGIN + 8, MARGIN + 6 + 14 * names.index(name)), f"{name}: {points[-1].get(name)}", fill=colour)
    pen.text((4, MARGIN - 6), f"{high:.4g}", fill="black")
    pen.text((4, HEIGHT - MARGIN - 6), f"{low:.4g}", fill="black")
    pen.text((WIDTH - MARGIN - 60, HEIGHT - MARGIN + 8), f"{last:.4g} {across}", fill="black")
    return image


def _colours(count: int) -> list[Any]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
