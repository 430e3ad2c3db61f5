"""The settings of tuning, each declared once, for `--set`, `--help` and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any

from mos_common.errors import RequestError
from mos_common.flags import MOST_SEED, check_seed
from mos_common.presets import Preset
from mos_common.settings import parse_settings, setting, settings_from_json

LEAST_SEED = -(2**63)  # earlier releases took negative seeds, and their state folders are still opened
_PRESET = MISSING  # no default of its own: `TuningSettings.of` takes the base's


class Method(StrEnum):
    """How a concept is represented: the paper's ED-LoRA, or a method that it is compared with.

    ed-lora            two words with one embedding per layer, and pairs on all attention linears
    lora               one word with one embedding, and the pairs
    plain-lora         the pairs only: prompts name the concept by its class word
    custom-diffusion   one word with one embedding, pairs on keys and values of cross-attention
    p-plus             one word with one embedding per layer, no pairs (Voynov, arXiv 2303.09522)
    textual-inversion  one word with one embedding, no pairs (Gal, arXiv 2208.01618)
    """

    ED_LORA = "ed-lora"
    LORA = "lora"
    PLAIN_LORA = "plain-lora"
    CUSTOM_DIFFUSION = "custom-diffusion"
    P_PLUS = "p-plus"
    TEXTUAL_INVERSION = "textual-inversion"

    @property
    def words(self) -> int:
        """Number of words that are learnt."""
        return {Method.ED_LORA: 2, Method.PLAIN_LORA: 0}.get(self, 1)

    @property
    def layerwise(self) -> bool:
        """True if every cross-attention layer has its own embeddings."""
        return self in (Method.ED_LORA, Method.P_PLUS)

    @property
    def has_pairs(self) -> bool:
        """True if the weights of attention layers change."""
        return self not in (Method.P_PLUS, Method.TEXTUAL_INVERSION)


_METHODS = f"how the concept is represented: {', '.join(Method)}"


@dataclass(frozen=True)
class TuningSettings:
    """How one concept is tuned; docs/tuning.md measures what each setting does.

    Learning rates are AdamW's at the first step; they fall linearly to `last_rate` times that.
    With `frozen_directions` only B of every pair is tuned: the rows of A come from one orthogonal
    matrix per layer, the same for every participant, and the pictures decide which rows, so that
    changes of different concepts seldom overlap (Orthogonal Adaptation, Po et al., CVPR 2024,
    arXiv 2312.02432).

    Raises:
        RequestError: a value is outside its range.

    """

    steps: int = setting(_PRESET, "optimiser steps; default: the base's preset")
    batch: int = setting(_PRESET, "pictures per optimiser step; default: the base's preset")
    learning_rate_words: float = setting(
        _PRESET, "learning rate of the concept's words; default: the base's preset", unit="per AdamW step"
    )
    learning_rate_text: float = setting(
        _PRESET,
        "learning rate of the text encoder's pairs, 0 leaves the text encoder unchanged; default: the base's preset",
        unit="per AdamW step",
    )
    learning_rate_unet: float = setting(
        _PRESET, "learning rate of the UNet's pairs; default: the base's preset", unit="per AdamW step"
    )
    noise_offset: float = setting(
        _PRESET, "strength of the noise added to a whole channel at once; default: the base's preset"
    )
    method: Method = setting(Method.ED_LORA, _METHODS)
    rank: int = setting(4, "rank of every pair; alpha equals it")
    words: int = setting(0, "number of words that represent the concept; 0: the method's own")
    frozen_directions: bool = setting(
        False, "tune only B of every pair, with A from orthogonal rows, so that concepts collide less"
    )
    seed: int = setting(0, "seed of batches, views, captions, times, noise and initial values")
    last_rate: float = setting(0.0, "learning rate after the last step", unit="share of the first")
    averaging: float = setting(
        0.0, "decay of the running average of the parameters, which is the result; 0: the last step's", unit="share"
    )
    norm_stop: float = setting(
        1.4,
        "norm at which a word stops growing, 0: never; 1.4 is the paper's 0.55 on Stable Diffusion 1.5",
        unit="median norms of the base's tokens",
    )
    background_weight: float = setting(
        1.0, "weight of the loss outside a mask; 1: the plain loss, 0: the masked loss", unit="share"
    )
    attention_weight: float = setting(0.0, "weight of attention regularisation, for pictures with a mask")
    template_share: float = setting(0.0, "captions that are replaced by plain templates", unit="share")
    shuffle_captions: bool = setting(True, "reorder the comma-separated parts of a caption")
    crops: int = setting(1, "views of each picture: its middle, then random crops")
    mirror: bool = setting(False, "show mirrored views too")
    checkpoint_every: int = setting(50, "interval between checkpoints", unit="steps")
    watch_every: int = setting(100, "interval between evaluations on drawings, 0: never", unit="steps")
    patience: int = setting(3, "evaluations without improvement before tuning stops")

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100_000:
            raise RequestError(f"{self.steps} steps: expected 1 to 100000")
        if not 1 <= self.rank <= 256 or not 1 <= self.batch <= 1024:
            raise RequestError(f"rank {self.rank}, batch {self.batch}: expected rank 1 to 256 and batch 1 to 1024")
        if not LEAST_SEED <= self.seed <= MOST_SEED:
            raise RequestError(f"seed {self.seed}: expected a whole number from 0 to {MOST_SEED}")
        if not 0 <= self.words <= 16 or (self.words and not self.method.words):
            raise RequestError(
                f"words {self.words} with {self.method.value}: expected 0 to 16, and 0 for a method without words"
            )
        shares = ("last_rate", "averaging", "background_weight", "template_share")
        if wrong := [name for name in shares if not 0 <= getattr(self, name) <= 1]:
            raise RequestError(f"{wrong[0]} is {getattr(self, wrong[0])}: expected a share from 0 to 1")
        rates = (
            "learning_rate_words",
            "learning_rate_text",
            "learning_rate_unet",
            "noise_offset",
            "norm_stop",
            "attention_weight",
        )
        if wrong := [name for name in rates if not 0 <= getattr(self, name) < 1e6]:
            raise RequestError(f"{wrong[0]} is {getattr(self, wrong[0])}: expected a number from 0")
        if self.averaging == 1:
            raise RequestError("averaging is 1: such an average never moves; expected a share below 1")
        if not 1 <= self.crops <= 64 or self.checkpoint_every < 1 or self.watch_every < 0 or self.patience < 1:
            raise RequestError(
                "expected crops 1 to 64, checkpoint_every and patience from 1, watch_every from 0 (never)"
            )

    @property
    def word_count(self) -> int:
        """Number of words that represent the concept."""
        return self.words or self.method.words

    def rate_at(self, done: int) -> float:
        """Return the learning rate after `done` steps, as a share of the full one."""
        return 1 - (1 - self.last_rate) * done / self.steps

    @classmethod
    def of(
        cls, preset: Preset, *, steps: int | None = None, seed: int = 0, changes: Mapping[str, Any] | None = None
    ) -> TuningSettings:
        """Return the settings of a base's preset, with `changes` by name as values or as text.

        `steps` replaces the preset's; a change of the same name wins over `steps` and `seed`.

        Raises:
            RequestError: a name is unknown, or a value is not of its type or range.

        """
        values: dict[str, Any] = {
            field.name: getattr(preset, field.name) for field in fields(cls) if hasattr(preset, field.name)
        }
        if steps is not None:
            values["steps"] = steps
        return settings_from_json(cls, {**values, "seed": seed, **(changes or {})})


def tuning_texts(texts: Iterable[str]) -> dict[str, str]:
    """Check the NAME=VALUE texts of `--set` and return each value by name, as it was typed.

    A participant's state folder keeps them so: the name of the tuned file is a digest of them.

    Raises:
        RequestError: a name is unknown or given twice, or a value is not of its type; or the seed
            is none that a command takes.

    """
    texts = list(texts)
    parsed = parse_settings(TuningSettings, texts)
    if "seed" in parsed:
        check_seed(parsed["seed"], "--set seed")
    pairs = (text.partition("=") for text in texts)
    return {name.strip(): value.strip() for name, _, value in pairs}
