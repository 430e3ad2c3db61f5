"""When a concept is ready: identity and prompt-following of drawings at fixed seeds, looked at while it is tuned.

Identity is image alignment with the pictures held back. Prompt-following asks, of each drawing in a context ("V at night"), which
context it shows: it is compared with what the untouched base draws for the class word in the same contexts, both without what all
their contexts have in common. So it needs no other model, and falls when the pictures' own backgrounds are learnt by heart. All
contexts share their noise, and the class word is drawn from several: else its subjects differ more than their surroundings.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from mos_client.tuning.loop import Tuning, V
from mos_common.base_model import Base
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.prompts import WATCHED, about
from mos_common.scores import ImageScorer, context_alignment, image_alignment

SEED = 7
USUAL_SEEDS = (7, 8, 9, 10)
STEPS = 12
LEARNT_BY_HEART = 0.1  # so much less prompt-following than at its best, while identity grows no more


@dataclass(frozen=True)
class Look:
    """What drawings showed after `step` steps. `own` is identity with the pictures tuned on."""

    step: int
    identity: float
    following: float
    own: float

    @property
    def score(self) -> float:
        """What is maximised: the mean of identity and prompt-following."""
        return (self.identity + self.following) / 2


class Watch:
    """Looks at a tuning every so often, keeps the best, and says when it gets no better."""

    def __init__(
        self,
        base: Base,
        class_word: str,
        tuned_on: Float[Tensor, "m 3 h w"],
        held_back: Float[Tensor, "n 3 h w"],
        patience: int,
    ) -> None:
        self.base, self.class_word, self.patience = base, class_word, patience
        self.scorer = ImageScorer(str(base.device))
        self._held_back, self._tuned_on = self.scorer.features(held_back), self.scorer.features(tuned_on)
        self.looks: list[Look] = []
        self.best_values: list[Tensor] = []
        self.rows: list[UInt8[Tensor, "contexts 3 h w"]] = []
        self._usual: Tensor | None = None

    @property
    def best(self) -> Look | None:
        """The look of the highest score, the earliest of equals."""
        return max(self.looks, key=lambda look: look.score, default=None)

    @property
    def ready(self) -> bool:
        """No look since the best one, `patience` of them, was better."""
        best = self.best
        return best is not None and len(self.looks) - 1 - self.looks.index(best) >= self.patience

    @property
    def over_fitted(self) -> bool:
        """Prompt-following has fallen from its best, or its own pictures were still approached while those held back were not."""
        if len(self.looks) < 2 or (best := self.best) is None:
            return False
        last = self.looks[-1]
        forgot = max(look.following for look in self.looks) - last.following > LEARNT_BY_HEART
        by_heart = last.own > best.own and last.identity < best.identity - LEARNT_BY_HEART / 2
        return forgot or by_heart

    def look(self, tuning: Tuning) -> Look:
        """Draw with what is tuned so far, score it, and keep it if it is the best."""
        with tuning.averaged(), torch.no_grad():
            subject = V if tuning.words is not None else f"a {tuning.class_word}"
            words = {token: tensor.detach() for token, tensor in tuning.vocabulary.items()}
            with attached(self.base, tuning.changes()):
                drawn = self._draw(subject, words, SEED)
            values = [parameter.detach().clone() for parameter in tuning.parameters]
        features = self.scorer.features(drawn)
        found = Look(
            step=tuning.done,
            identity=image_alignment(features, self._held_back),
            following=context_alignment(features, self._of_class_word()),
            own=image_alignment(features, self._tuned_on),
        )
        self.looks.append(found)
        self.rows.append(((drawn.clamp(-1, 1) + 1) * 127.5).round().byte())
        if self.best is found:
            self.best_values = values
        return found

    def _of_class_word(self) -> Tensor:
        """Features of what the untouched base draws for the class word in the same contexts, the mean over seeds."""
        if self._usual is None:
            drawn = [self._draw(f"a {self.class_word}", {}, seed) for seed in USUAL_SEEDS]
            self._usual = torch.stack([self.scorer.features(pictures) for pictures in drawn]).mean(dim=0)
        return self._usual

    def _draw(self, subject: str, words: Mapping[str, Tensor], seed: int) -> Tensor:
        prompts = [about(context, subject) for context in WATCHED]
        return draw(self.base, prompts, [seed] * len(prompts), vocabulary=words, how=Drawing(steps=STEPS))

    def write_grid(self, path: Path) -> None:
        """One row a look, one column a context: people look rather than read."""
        if not self.rows:
            return
        side = self.rows[0].shape[2]
        scale = max(1, 128 // side)
        cell, margin = side * scale, 150
        sheet = Image.new("RGB", (margin + len(WATCHED) * cell, len(self.rows) * cell), "white")
        pen = ImageDraw.Draw(sheet)
        for y, (row, look) in enumerate(zip(self.rows, self.looks[-len(self.rows) :], strict=True)):
            best = "  best" if look is self.best else ""
            pen.text(
                (6, y * cell + 6),
                f"step {look.step}{best}\nidentity {look.identity:.3f}\nfollowing {look.following:.3f}",
                fill="black",
            )
            for x, picture in enumerate(row):
                pixels = picture.permute(1, 2, 0).numpy()
                sheet.paste(
                    Image.fromarray(np.ascontiguousarray(pixels)).resize((cell, cell), Image.Resampling.NEAREST),
                    (margin + x * cell, y * cell),
                )
        data = io.BytesIO()
        sheet.save(data, "PNG")
        write_atomically(path, data.getvalue())

    def state(self) -> tuple[str, dict[str, Tensor]]:
        """What a checkpoint keeps: the looks as JSON, and tensors."""
        tensors = {f"best.{i}": value.cpu().contiguous() for i, value in enumerate(self.best_values)}
        tensors |= {f"row.{i}": row.contiguous() for i, row in enumerate(self.rows)}
        return json.dumps([asdict(look) for look in self.looks]), tensors

    def restore(self, looks: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.looks = [Look(**look) for look in json.loads(looks)]
        self.best_values = _numbered(tensors, "best.")
        self.rows = _numbered(tensors, "row.")


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Any]:
    """A TensorBoard writer into `folder`, or None without one.

    Raises:
        RequestError: TensorBoard is not installed.

    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RequestError(
            "TensorBoard is not installed: pip install tensorboard, or leave out --tensorboard"
        ) from error
    with SummaryWriter(str(folder)) as writer:
        yield writer


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(name.startswith(prefix) for name in tensors)
    return [tensors[f"{prefix}{i}"] for i in range(count)]
