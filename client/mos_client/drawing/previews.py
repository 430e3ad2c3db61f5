"""A preview while a picture is drawn: what the model sees in the noise, in a renewed file."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image

from mos_client.drawing.sheet import contact_sheet
from mos_common.base_model import Base
from mos_common.drawing_steps import Step
from mos_common.picture_metadata import metadata
from mos_common.pictures import as_image, picture_format, save_image

EVERY_S = 1.0


class Preview:
    """Writes the first step at once, and then one each second; the picture is drawn as without it.

    The file is replaced whole, so a viewer that reloads it never sees half a picture.
    """

    def __init__(self, base: Base, file: Path) -> None:
        self.base, self.file = base, file
        self._last: float | None = None

    def look(self, step: Step) -> None:
        """Show the estimate of one step, if the last one shown is a second ago."""
        now = time.monotonic()
        if self._last is not None and now - self._last < EVERY_S:
            return
        self._last = now
        seen = self.base.decode_latents(step.estimate())
        images = [as_image(torch.nan_to_num(picture)) for picture in seen]
        self.show(images[0] if len(images) == 1 else contact_sheet(images))

    def show(self, image: Image.Image) -> None:
        """Write an image, which says that a model made it, and not how: it is not finished."""
        save_image(image, self.file, **metadata(picture_format(self.file), None))
