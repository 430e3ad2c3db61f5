"""Evaluate a concept while it is tuned, on drawings at fixed seeds: identity and prompt adherence.

Identity is image alignment with the pictures held back. Prompt adherence asks which context a
drawing ("V at night") shows: it is compared with what the untouched base draws for the class word
in the same contexts, both without what all contexts have in common. So it needs no other model, and
falls when tuning memorises the backgrounds of the pictures. All contexts share their noise, and the
class word is drawn with several seeds: otherwise its subjects differ more than their surroundings.
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
from mos_common.files import check_writable, write_atomically
from mos_common.prompt_grammar import as_text
from mos_common.prompts import WATCHED, about
from mos_common.scores import ImageScorer, context_alignment, image_alignment

SEED = 7
CLASS_SEEDS = (7, 8, 9, 10)
STEPS = 12
MARGIN = 150  # of the picture of all drawings, in pixels: what is written beside each row
OVERFIT_DROP = 0.1  # of prompt adherence below its best, while identity no longer grows
_NAMES_OF_0_1_0 = {"following": "prompt_adherence"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of the drawings after `step` steps; `own` is identity with the pictures tuned on."""

    step: int
    identity: float
    prompt_adherence: float
    own: float

    @property
    def score(self) -> float:
        """The mean of identity and prompt adherence, which is maximised."""
        return (self.identity + self.prompt_adherence) / 2


class Watch:
    """Evaluates a tuning at intervals, keeps the best state, and decides when to stop."""

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
        self.evaluations: list[Evaluation] = []
        self.best_values: list[Tensor] = []
        self.rows: list[UInt8[Tensor, "contexts 3 h w"]] = []
        self._class_features: Tensor | None = None

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the highest score, the earliest of equals."""
        return max(self.evaluations, key=lambda evaluation: evaluation.score, default=None)

    @property
    def finished(self) -> bool:
        """True after `patience` evaluations without improvement."""
        best = self.best
        return best is not None and len(self.evaluations) - 1 - self.evaluations.index(best) >= self.patience

    @property
    def over_fitted(self) -> bool:
        """True if prompt adherence has dropped, or only identity with its own pictures grows."""
        if len(self.evaluations) < 2 or (best := self.best) is None:
            return False
        last = self.evaluations[-1]
        highest = max(evaluation.prompt_adherence for evaluation in self.evaluations)
        memorised = last.own > best.own and last.identity < best.identity - OVERFIT_DROP / 2
        return highest - last.prompt_adherence > OVERFIT_DROP or memorised

    def evaluate(self, tuning: Tuning) -> Evaluation:
        """Draw with what is tuned so far, score it, and keep it if it is the best."""
        with tuning.averaged(), torch.no_grad():
            subject = V if tuning.words is not None else f"a {tuning.class_word}"
            words = {token: tensor.detach() for token, tensor in tuning.vocabulary.items()}
            with attached(self.base, tuning.changes()):
                drawings = self._draw(subject, words, SEED)
            values = [parameter.detach().clone() for parameter in tuning.parameters]
        features = self.scorer.features(drawings)
        evaluation = Evaluation(
            step=tuning.done,
            identity=image_alignment(features, self._held_back),
            prompt_adherence=context_alignment(features, self._of_class_word()),
            own=image_alignment(features, self._tuned_on),
        )
        self.evaluations.append(evaluation)
        self.rows.append(((drawings.clamp(-1, 1) + 1) * 127.5).round().byte())
        if self.best is evaluation:
            self.best_values = values
        return evaluation

    def _of_class_word(self) -> Tensor:
        """Return features of the base's drawings of the class word, mean over seeds."""
        if self._class_features is None:
            drawn = [self._draw(f"a {self.class_word}", {}, seed) for seed in CLASS_SEEDS]
            self._class_features = torch.stack([self.scorer.features(pictures) for pictures in drawn]).mean(dim=0)
        return self._class_features

    def _draw(self, subject: str, words: Mapping[str, Tensor], seed: int) -> Tensor:
        prompts = [about(context, as_text(subject)) for context in WATCHED]
        return draw(self.base, prompts, [seed] * len(prompts), vocabulary=words, how=Drawing(steps=STEPS))

    def write_grid(self, path: Path) -> None:
        """Write the drawings as one PNG: a row for each evaluation, a column for each context."""
        if not self.rows:
            return
        side = self.rows[0].shape[2]
        scale = max(1, 128 // side)
        cell, margin = side * scale, MARGIN
        sheet = Image.new("RGB", (margin + len(WATCHED) * cell, len(self.rows) * cell), "white")
        pen = ImageDraw.Draw(sheet)
        evaluated = self.evaluations[-len(self.rows) :]
        for y, (row, evaluation) in enumerate(zip(self.rows, evaluated, strict=True)):
            best = "  best" if evaluation is self.best else ""
            pen.text(
                (6, y * cell + 6),
                f"step {evaluation.step}{best}\nidentity {evaluation.identity:.3f}\n"
                f"adherence {evaluation.prompt_adherence:.3f}",
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
        """Return what a checkpoint keeps: the evaluations as JSON, and tensors."""
        tensors = {f"best.{i}": value.cpu().contiguous() for i, value in enumerate(self.best_values)}
        tensors |= {f"row.{i}": row.contiguous() for i, row in enumerate(self.rows)}
        return json.dumps([asdict(evaluation) for evaluation in self.evaluations]), tensors

    def restore(self, evaluations: str, tensors: Mapping[str, Tensor]) -> None:
        """Resume from what `state` returned, in this version or in 0.1.0."""
        self.evaluations = [
            Evaluation(**{_NAMES_OF_0_1_0.get(name, name): value for name, value in saved.items()})
            for saved in json.loads(evaluations)
        ]
        self.best_values = _numbered(tensors, "best.")
        self.rows = _numbered(tensors, "row.")


def drawings_in(grid: Image.Image, row: int) -> list[Image.Image]:
    """Return the drawings in one row of what `write_grid` wrote; -1 is the newest."""
    cell = (grid.width - MARGIN) // len(WATCHED)
    top = row * cell if row >= 0 else grid.height + row * cell
    lefts = (MARGIN + place * cell for place in range(len(WATCHED)))
    return [grid.crop((left, top, left + cell, top + cell)) for left in lefts]


def check_tensorboard(folder: Path) -> None:
    """Check that TensorBoard's logs can be written into `folder`.

    Raises:
        RequestError: TensorBoard is not installed.
        StateError: the folder cannot be written.

    """
    try:
        import torch.utils.tensorboard  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise RequestError(
            "TensorBoard is not installed: pip install tensorboard, or leave out --tensorboard"
        ) from error
    check_writable(folder / "events")


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Any]:
    """Yield a TensorBoard writer into `folder`, or None without one.

    Raises:
        RequestError, StateError: as `check_tensorboard` raises.

    """
    if folder is None:
        yield None
        return
    check_tensorboard(folder)
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        yield writer


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(name.startswith(prefix) for name in tensors)
    return [tensors[f"{prefix}{i}"] for i in range(count)]
