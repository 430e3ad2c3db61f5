"""How far drawings follow an adapter of `tiny`: their edges against those of what was asked for.

    python -m mos_tiny.recipe.control.measure sketch --n 64

Each picture that is composed gives a prompt and a condition. The drawing's edges are compared with
the picture's by F1 within one pixel: with the adapter, without it, and with the condition of the
next picture, so that what any condition does is not taken for following this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from mos_common.base_model import Base, load_base
from mos_common.control.adapters import Adapter, read_adapter
from mos_common.control.condition import Control
from mos_common.drawing import Drawing, draw
from mos_common.shell import run, say
from mos_tiny import adapter_folders
from mos_tiny.recipe.art import SIDE
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.control.conditions import Kind, conditioned_pictures
from mos_tiny.recipe.pictures import as_tensor

STEP = 0.25  # of the range -1 to 1: a larger difference of two neighbours is an edge
SEED = 900  # of pictures that no adapter was trained on


def edges(pictures: Tensor) -> Bool[Tensor, "n height width"]:
    """Return where neighbours differ in some channel, to the right or below."""
    across, down = torch.zeros_like(pictures), torch.zeros_like(pictures)
    across[..., :-1] = (pictures[..., 1:] - pictures[..., :-1]).abs()
    down[..., :-1, :] = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs()
    return torch.maximum(across, down).amax(dim=1) > STEP


def agreement(drawn: Tensor, wanted: Tensor) -> float:
    """Return the mean F1 of two sets of pictures' edges, each within one pixel of the other's."""
    own, other = edges(drawn), edges(wanted)
    near_own, near_other = (max_pool2d(each[:, None].float(), 3, 1, 1)[:, 0] > 0 for each in (own, other))
    precision = (own & near_other).sum(dim=(1, 2)) / own.sum(dim=(1, 2)).clamp(min=1)
    recall = (other & near_own).sum(dim=(1, 2)) / other.sum(dim=(1, 2)).clamp(min=1)
    return float((2 * precision * recall / (precision + recall).clamp(min=1e-9)).mean())


def followed(base: Base, adapter: Adapter, kind: Kind, count: int, steps: int) -> dict[str, float]:
    """Return the agreement of drawings: with the adapter, without, with another condition."""
    pictures, captions, conditions = conditioned_pictures(kind, World(), count, SIDE, SEED)
    wanted = as_tensor(pictures)

    def drawn(controls: Sequence[UInt8[np.ndarray, "height width 3"] | None]) -> Tensor:
        rows = []
        for number, condition in enumerate(controls):
            control = [] if condition is None else [Control(adapter, Image.fromarray(condition))]
            how = Drawing(steps=steps)
            rows.append(draw(base, [captions[number]], [number], how=how, controls=control))
        return torch.cat(rows)

    ways = {"with": list(conditions), "without": [None] * count, "another": [*conditions[1:], conditions[0]]}
    return {way: agreement(drawn(given), wanted) for way, given in ways.items()}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.control.measure sketch --n 64")
def measured(
    kind: Annotated[Kind, typer.Argument(help="What the adapter reads.")],
    folder: Annotated[Path | None, typer.Option("--adapter", help="Its folder; default: the packaged one.")] = None,
    count: Annotated[int, typer.Option("--n", min=2, help="Pictures; each is drawn three times.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 20,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
) -> None:
    """Measure how far drawings follow an adapter."""
    torch.set_num_threads(threads)
    base = load_base("tiny", device="cpu")
    adapter = read_adapter(folder or adapter_folders()[kind.value], base)
    found = followed(base, adapter, kind, count, steps)
    say(f"{kind.value}, {count} pictures: " + ", ".join(f"{way} {value:.3f}" for way, value in found.items()))


if __name__ == "__main__":
    run(app)
