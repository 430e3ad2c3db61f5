"""The request for one tuning as one value, from the flags of a command to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mos_client.pictures.folder import Picture, split_pictures
from mos_client.pictures.marks import Marks
from mos_client.tuning.settings import TuningSettings
from mos_common.names import check_concept_name
from mos_common.presets import preset_for
from mos_common.texts import checked_text

# What is written into the concept file, by the flag that gives it.
_TRAVEL = {"class_word": "--class", "author": "--author", "licence": "--licence"}


@dataclass(frozen=True)
class TuneRequest:
    """Which concept to tune, on which pictures and base model, and how.

    `images` is a folder with the pictures of one concept; `class_word` says what it is a kind of.
    `base` is as `mos_common.base_files` finds it; without `device` and `dtype` the best
    available are used. Without `steps` the base's preset decides. `settings` are those of
    `TuningSettings` by name, as values or as text. `vram` is the memory that a step may use, in
    gigabytes. `mark` is the word for the concept in captions, if it is none of the usual ones.

    Raises:
        RequestError: `concept` is not a name like "<cat>", `mark` is no word, a setting is unknown
            or out of range, or a text that travels has a character which is not seen.

    """

    images: Path
    concept: str
    class_word: str
    base: str = "tiny"
    steps: int | None = None
    seed: int = 0
    author: str = ""
    licence: str = ""
    device: str | None = None
    dtype: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    vram: float | None = None
    mark: str | None = None

    def __post_init__(self) -> None:
        check_concept_name(self.concept)
        for name, flag in _TRAVEL.items():
            object.__setattr__(self, name, checked_text(getattr(self, name), flag))
        Marks(self.concept, self.mark)
        TuningSettings.of(preset_for(self.base), steps=self.steps, seed=self.seed, changes=self.settings)

    @property
    def marks(self) -> Marks:
        """The words that stand for the concept in captions."""
        return Marks(self.concept, self.mark)

    def pictures(self) -> tuple[list[Picture], list[Picture]]:
        """Return (pictures to tune on, pictures held back for scoring).

        Raises:
            PicturesError: the folder is missing or holds too few usable pictures.

        """
        return split_pictures(self.images, self.marks)
