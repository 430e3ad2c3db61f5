"""The witness of faces: a small network that finds eyes and a mouth in a picture of one person.

    python -m mos_tiny.recipe.witnesses.faces --out faces.safetensors

learns the packaged one again, which knows the faces of one style, and says how far it can be
trusted.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mos_common.base_model import load_base
from mos_common.files import write_atomically
from mos_common.shell import run, say
from mos_tiny.recipe.art import SIDE, Art, load_art
from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.sprites import Sprite
from mos_tiny.recipe.trials import PLACES, composed
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.witnesses.features import Pictures
from mos_tiny.recipe.world import STYLES, rgb

KEPT = Path(__file__).with_name("faces.safetensors")
STYLE = "toonHead"
"""The style whose faces the packaged witness knows."""
Box = tuple[int, int, int, int]
FACE: Box = (12, 12, 60, 52)
"""The region of eyes and mouth when one person is composed into 64 x 64 pixels."""


def face_boxes(concepts: Art, style: str) -> tuple[Box, Box]:
    """Return the boxes (top, left, bottom, right) of eyes and mouth.

    They are where views of one person differ, split at the widest gap between rows.
    """
    views = [concepts.pictures[concepts.where(style=style, id=i)].astype(np.float32) for i in range(4)]
    moving = np.max([view.std(axis=0).max(axis=-1) for view in views], axis=0) > 12
    rows = np.flatnonzero(moving.any(axis=1))
    cut = int(np.diff(rows).argmax()) + 1
    return _box(moving, rows[:cut]), _box(moving, rows[cut:])


def _box(moving: np.ndarray, rows: np.ndarray) -> Box:
    columns = np.flatnonzero(moving[rows].any(axis=0))
    return int(rows[0]) - 1, int(columns[0]) - 2, int(rows[-1]) + 2, int(columns[-1]) + 3


def without(sprite: Sprite, box: Box, skin: str) -> Sprite:
    """Return the face with a box of it painted in the colour of the skin."""
    painted = sprite.copy()
    top, left, bottom, right = box
    painted[top:bottom, left:right, :3] = rgb(skin)
    return painted


class FaceDetector(nn.Module):
    """A detector of eyes and of a mouth in a picture of one person."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(48 * 6 * 5, 2)),
        )

    def forward(self, pictures: Pictures) -> Float[Tensor, "n 2"]:
        """Return the log odds of eyes and of a mouth."""
        top, left, bottom, right = FACE
        log_odds: Tensor = self.layers(pictures[:, :, top:bottom, left:right])
        return log_odds

    def fit(self, pictures: Pictures, has: Float[Tensor, "n 2"], steps: int = 700, batch: int = 48) -> FaceDetector:
        """Learn from pictures `SIDE` pixels wide; `has` is 1 or 0 for eyes and for a mouth."""
        assert pictures.shape[-1] == SIDE
        generator = torch.Generator().manual_seed(0)
        adam = torch.optim.Adam(self.parameters(), lr=2e-3)
        for step in range(steps):
            adam.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            which = torch.randint(len(pictures), (batch,), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(self(pictures[which]), has[which])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        return self.eval()

    @torch.no_grad()
    def both(self, pictures: Pictures) -> list[str]:
        """Return `yes` for each picture that has eyes and a mouth, else `no`."""
        return ["yes" if has_both else "no" for has_both in (self(pictures) > 0).all(dim=1).tolist()]


def faces_with_truth(
    world: World, vae: Any, count: int, random: Random, style: str = ""
) -> tuple[Pictures, Float[Tensor, "n 2"]]:
    """Compose people with and without eyes and mouth, and return the pictures with the truth.

    Truth is (1 or 0 for eyes, 1 or 0 for a mouth); both are 0 for faces that are blurred beyond
    recognition. Every second picture goes through the autoencoder. With `style`, all are of it.
    """
    people = [i for i in world.people if style in ("", world.characters.labels[i]["style"])]
    concepts: Art = load_art("concepts")
    boxes = {style: face_boxes(concepts, style) for style in STYLES}
    pictures, has = [], []
    for _ in range(count):
        i = random.choice(people)
        label, sprite = world.characters.labels[i], world.characters.pictures[i]
        truth = random.choice([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
        for visible, box in zip(truth, boxes[label["style"]], strict=True):
            sprite = sprite if visible else without(sprite, box, label["skin"])
        subject = Subject(sprite, "", person=True, label=label)
        picture = composed(random.choice(PLACES), [subject], random, world)
        if truth == (1.0, 1.0) and random.random() < 0.15:
            blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(random.uniform(2.5, 4)))
            picture, truth = np.asarray(blurred), (0.0, 0.0)
        pictures.append(picture)
        has.append(truth)
    composed_people = as_tensor(np.stack(pictures))
    half = torch.arange(len(composed_people)) % 2 == 0
    composed_people[half] = reconstructed(vae, composed_people[half])
    return composed_people, torch.tensor(has)


def kept_detector(file: Path = KEPT) -> FaceDetector:
    """Return the packaged detector of the faces of `STYLE`."""
    detector = FaceDetector()
    detector.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return detector.eval()


def error_rates(detector: FaceDetector, pictures: Pictures, has: Float[Tensor, "n 2"]) -> tuple[float, float]:
    """Return the shares of whole faces that are missed, and of others that are taken for whole."""
    found, whole = np.array(detector.both(pictures)) == "yes", has.bool().all(dim=1).numpy()
    return float((~found[whole]).mean()), float(found[~whole].mean())


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def learn(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    style: Annotated[str, typer.Option("--style", help="The style of the people.")] = STYLE,
    count: Annotated[int, typer.Option("--n", min=100, help="Pictures to learn from.")] = 1500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 1000,
) -> None:
    """Learn to find eyes and a mouth."""
    torch.manual_seed(seed)
    world, vae, random = World(), load_base("tiny").vae, Random(seed)
    detector = FaceDetector().fit(*faces_with_truth(world, vae, count, random, style))
    missed, mistaken = error_rates(detector, *faces_with_truth(world, vae, count // 3, random, style))
    state = {name: tensor.half().contiguous() for name, tensor in detector.state_dict().items()}
    write_atomically(out, save(state, {"style": style, "pictures": str(count), "seed": str(seed)}))
    say(f"{out}: misses {missed:.3f} of whole faces, takes {mistaken:.3f} of others for whole")


if __name__ == "__main__":
    run(app)
