"""The settings of tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from mos_common.errors import RequestError
from mos_common.presets import Preset


class Method(StrEnum):
    """What stands for a concept: the paper's ED-LoRA, and what it is compared with.

    ed-lora            two words, each with one embedding a cross-attention layer, and a pair on every attention linear
    lora               one word with one embedding, and the pairs
    plain-lora         the pairs only: the concept is called by its class word
    custom-diffusion   one word with one embedding, and pairs on keys and values of cross-attention only
    p-plus             one word with one embedding a layer, no pairs (Voynov et al., arXiv 2303.09522)
    textual-inversion  one word with one embedding, no pairs (Gal et al., arXiv 2208.01618)
    """

    ED_LORA = "ed-lora"
    LORA = "lora"
    PLAIN_LORA = "plain-lora"
    CUSTOM_DIFFUSION = "custom-diffusion"
    P_PLUS = "p-plus"
    TEXTUAL_INVERSION = "textual-inversion"

    @property
    def words(self) -> int:
        """How many words are learnt."""
        return {Method.ED_LORA: 2, Method.PLAIN_LORA: 0}.get(self, 1)

    @property
    def layerwise(self) -> bool:
        """Whether every cross-attention layer has embeddings of its own."""
        return self in (Method.ED_LORA, Method.P_PLUS)

    @property
    def has_pairs(self) -> bool:
        """Whether weights are changed at all."""
        return self not in (Method.P_PLUS, Method.TEXTUAL_INVERSION)


@dataclass(frozen=True)
class TuningConfig:
    """How one concept is tuned; docs/tuning.md measures what each setting does.

    Learning rates are AdamW's at the first step; they fall linearly to `last_rate` times that. A text rate of 0 leaves the text encoder
    as it is. `rank` is that of every pair, alpha equals it. `seed` decides batches, views, captions, times, noise and initial values.

    `words` says how many words stand for the concept, 0: as many as the method has. With `frozen_directions` only B of every pair is
    tuned: A are rows of one orthogonal matrix a layer, the same for everybody, and the pictures decide which. So changes of different concepts
    hardly meet (Orthogonal Adaptation, Po et al., CVPR 2024, arXiv 2312.02432).

    `averaging` is the decay of the running average of the parameters, which is what comes out; 0 gives the last step's.
    `norm_stop` is the norm at which a word stops growing, in median norms of the base's tokens (1.4 is 0.55 on Stable Diffusion
    1.5, as in the paper's repository); 0 lets it grow.
    `background_weight` weighs the loss where a mask says that the concept is not: 1 is the plain loss, 0 the masked loss.
    `attention_weight` weighs attention regularisation, for pictures with a mask.
    `template_share` of the captions are replaced by plain templates. `shuffle_captions` reorders comma-separated parts.
    `crops` and `mirror` show each picture in several ways.
    """

    steps: int
    batch: int
    learning_rate_words: float
    learning_rate_text: float
    learning_rate_unet: float
    noise_offset: float
    method: Method = Method.ED_LORA
    rank: int = 4
    words: int = 0
    frozen_directions: bool = False
    seed: int = 0
    last_rate: float = 0.0
    averaging: float = 0.0
    norm_stop: float = 1.4
    background_weight: float = 1.0
    attention_weight: float = 0.0
    template_share: float = 0.0
    shuffle_captions: bool = True
    crops: int = 1
    mirror: bool = False
    checkpoint_every: int = 50
    watch_every: int = 100
    patience: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100_000:
            raise RequestError(f"{self.steps} steps: expected 1 to 100000")
        if not 1 <= self.rank <= 256 or not 1 <= self.batch <= 1024:
            raise RequestError(f"rank {self.rank}, batch {self.batch}: expected rank 1 to 256 and batch 1 to 1024")
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
            raise RequestError("averaging is 1: an average that keeps everything never moves; expected a share below 1")
        if not 1 <= self.crops <= 64 or self.checkpoint_every < 1 or self.watch_every < 0 or self.patience < 1:
            raise RequestError(
                "expected crops 1 to 64, checkpoint_every and patience from 1, watch_every from 0 (never)"
            )

    @property
    def word_count(self) -> int:
        """How many words stand for the concept."""
        return self.words or self.method.words

    def rate_at(self, done: int) -> float:
        """The share of the full learning rate after so many steps."""
        return 1 - (1 - self.last_rate) * done / self.steps

    @classmethod
    def of(
        cls, preset: Preset, *, steps: int | None = None, seed: int = 0, changes: Mapping[str, str] | None = None
    ) -> TuningConfig:
        """The settings of a base's preset; `steps` replaces the preset's, `changes` any setting by name, as text.

        Raises:
            RequestError: there is no such setting, or the text is no value for it.

        """
        values: dict[str, object] = {
            field.name: getattr(preset, field.name) for field in fields(cls) if hasattr(preset, field.name)
        }
        if steps is not None:
            values["steps"] = steps
        return cls(**{**values, "seed": seed, **_parsed(changes or {})})  # type: ignore[arg-type]


SETTINGS = tuple(field.name for field in fields(TuningConfig) if field.name not in ("steps", "seed", "method"))


def parse_settings(texts: list[str]) -> dict[str, str]:
    """`NAME=VALUE` texts of `--set`, checked.

    Raises:
        RequestError: one of them is no setting of tuning.

    """
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (_, equals, _) in zip(texts, pairs, strict=True) if not equals]:
        raise RequestError(f"--set {wrong[0]}: expected NAME=VALUE, such as attention_weight=0.01")
    changes = {name.strip(): value.strip() for name, _, value in pairs}
    _parsed(changes)
    return changes


def _parsed(changes: Mapping[str, str]) -> dict[str, object]:
    from pydantic import TypeAdapter, ValidationError

    kinds = {"int": int, "float": float, "bool": bool, "Method": Method}
    known = {field.name: kinds[str(field.type)] for field in fields(TuningConfig) if field.name != "seed"}
    values: dict[str, object] = {}
    for name, text in changes.items():
        if name not in known:
            raise RequestError(f"there is no setting {name}: choose one of {', '.join(known)}")
        try:
            values[name] = TypeAdapter(known[name]).validate_python(text)
        except ValidationError as error:
            raise RequestError(f"--set {name}={text}: {error.errors()[0]['msg']}") from error
    return values
