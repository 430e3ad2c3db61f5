"""Read PEFT's configuration of an adapter: `adapter_config.json`, and diffusers' metadata.

Every field is on one of three lists. It is honoured; or it cannot matter to weights that are
already trained; or only the values listed here leave the result alone, and any other refuses the
file by name. A field that is on no list is a newer PEFT's, and refuses the file unless it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from mos_client.importing.adapters.scaling import Scaling
from mos_client.importing.patterns import Patterns
from mos_common.errors import ConceptError
from mos_common.json_models import MOST_ENTRIES

PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PARTS = ("unet", "text_encoder", "text_encoder_2")
KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""The kinds that are read, and the field that has their alpha."""
Rank = Annotated[int, Field(ge=0)]


class Honoured(BaseModel):
    """The fields that decide what the factors mean, and what PEFT itself lets them be."""

    peft_type: str | None = None
    r: Rank | None = None
    lora_alpha: FiniteFloat | None = None
    alpha: FiniteFloat | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None


HONOURED = frozenset(Honoured.model_fields)
CANNOT_MATTER = frozenset(
    {
        # about the file, or about the task that a language model is used for
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        # only while training
        "lora_dropout", "rank_dropout", "module_dropout", "rank_dropout_scale", "init_weights", "eva_config",
        # of Conv1D layers, which no base has; PEFT switches it off for linear layers
        "fan_in_fan_out",
        # of something that is itself refused unless it is switched off
        "megatron_core", "qalora_group_size", "loftq_config", "corda_config", "lora_ga_config",
        # visible in the shapes of the factors
        "use_effective_conv2d", "decompose_both", "decompose_factor",
        # where the computation runs
        "runtime_config",
    }
)  # fmt: skip
LEAVES_THE_RESULT_ALONE: Mapping[str, Sequence[object]] = {
    # All other initialisations take something out of the base's own weights, so that the file's
    # factors mean a change of another base.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "bias": ("none",),
    **dict.fromkeys(
        (
            "lora_bias", "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices",
            "megatron_config", "use_qalora", "alora_invocation_tokens", "velora_config", "monteclora_config",
            "use_bdlora", "arrow_config", "kasa_config", "ensure_weight_tying",
        ),
        (),
    ),
}  # fmt: skip
"""Fields that refuse the file unless they are empty, or have one of these values."""
DEFAULT = 8.0
"""PEFT's own rank and alpha, where a configuration leaves them out."""


@dataclass(frozen=True)
class PeftConfig:
    """A checked configuration of one part of a model, or of all of it."""

    fields: Mapping[str, Any]
    patterns: Patterns = field(default_factory=Patterns, compare=False)

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> PeftConfig:
        """Return a configuration whose fields are all understood.

        Raises:
            ConceptError: it is of another kind of adapter, or a field's value changes the result in
                a way that cannot be imported.

        """
        kind = fields.get("peft_type") or "LORA"
        if kind not in KINDS:
            raise ConceptError(f"the file is of kind {kind}, which cannot be imported; known: LoRA, DoRA, LoHa, LoKr")
        for name, value in fields.items():
            if name in HONOURED or name in CANNOT_MATTER or _is_empty(value):
                continue
            if not any(value is allowed or value == allowed for allowed in LEAVES_THE_RESULT_ALONE.get(name, ())):
                raise ConceptError(_refusal(name, value))
        for name in sorted(HONOURED & fields.keys()):
            if isinstance(fields[name], list | dict) and len(fields[name]) > MOST_ENTRIES:
                raise ConceptError(
                    f"the file's configuration has {len(fields[name]):,} entries of {name}: expected at most "
                    f"{MOST_ENTRIES:,}, and no model has as many layers"
                )
        try:
            honoured = Honoured.model_validate({name: fields[name] for name in HONOURED & fields.keys()})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConceptError(
                f"the file's configuration has {where}={first['input']!r:.60}: {first['msg']}"
            ) from error
        return cls({**fields, **honoured.model_dump(exclude_unset=True)})

    def scaling(self, module: str, rank: int | None) -> Scaling:
        """Return the scale of a module's change, whose factors have `rank`.

        Raises:
            ConceptError: the file says another rank.

        """
        if not self.fields:
            return Scaling()
        name = KINDS[self.fields.get("peft_type") or "LORA"]
        alpha = self.fields.get(name)
        alpha = self._of_module("alpha_pattern", module, DEFAULT if alpha is None else float(alpha))
        written = int(self._of_module("rank_pattern", module, float(self.fields.get("r") or DEFAULT)))
        if rank is not None and rank != written:
            raise ConceptError(
                f"{module} has factors of rank {rank}, and the file's configuration says {written}: "
                "one of them belongs to another adapter"
            )
        return Scaling(alpha, bool(self.fields.get("use_rslora")), written)

    def is_decomposed(self) -> bool | None:
        """Return whether it is a DoRA; None if there is no configuration."""
        return bool(self.fields.get("use_dora")) if self.fields else None

    def adapts(self, module: str) -> bool:
        """Return whether PEFT puts the adapter on a module of this name."""
        excluded, targets = self.fields.get("exclude_modules"), self.fields.get("target_modules")
        if excluded and self._names(excluded, module):
            return False
        if targets is None or targets == "all-linear":
            return True
        if not self._names(targets, module):
            return False
        numbers = self.fields.get("layers_to_transform")
        if numbers is None or numbers == [] or isinstance(targets, str):
            return True
        number = self._number_in(module, self.fields.get("layers_pattern"))
        return number in (numbers if isinstance(numbers, list) else [numbers])

    def _of_module(self, pattern: str, module: str, otherwise: float) -> float:
        """Return the value of the first key, a regular expression, that matches."""
        patterns = self.fields.get(pattern) or {}
        return next(
            (value for key, value in patterns.items() if self.patterns.match(rf"(.*\.)?({key})$", module)), otherwise
        )

    def _names(self, targets: object, module: str) -> bool:
        """Return whether module names, or a regular expression of them, name a module."""
        if isinstance(targets, str):
            return self.patterns.match(rf"(?:{targets})$", module) is not None
        assert isinstance(targets, list)
        return any(module == name or module.endswith(f".{name}") for name in targets)

    def _number_in(self, module: str, patterns: object) -> int | None:
        """Return the number of the layer that a module belongs to, such as 3 in `layers.3.mlp`."""
        listed = [patterns] if isinstance(patterns, str) else patterns
        heads = [rf"(?:^|.*?\.){pattern}" for pattern in listed] if isinstance(listed, list) else []
        for head in heads or [r".*?\.[^.]*"]:
            if found := self.patterns.match(rf"{head}\.(?P<number>\d+)\.", module):
                return int(found["number"])
        return None


def configurations(metadata: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Return the configuration of each part, `unet` and so on; "" is that of all others.

    diffusers writes those of a pipeline with the part in front of each field, and that of a single
    model without.

    Raises:
        ConceptError: they are not JSON, or ask for something that cannot be imported.

    """
    try:
        whole = json.loads(metadata.get(PEFT_CONFIG, "{}"))
        of_parts: dict[str, dict[str, Any]] = {"": dict(whole)}
        for name, value in json.loads(metadata.get(DIFFUSERS_METADATA, "{}")).items():
            part, _, field = name.partition(".")
            if part in PARTS and field:
                of_parts.setdefault(part, {})[field] = value
            else:
                of_parts[""][name] = value
        read = {part: PeftConfig.checked(fields) for part, fields in of_parts.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConceptError(f"the LoRA's configuration ({DIFFUSERS_METADATA}, {PEFT_CONFIG}) cannot be read") from error
    return read


def _refusal(name: str, value: object) -> str:
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}…"
    if name == "init_lora_weights":
        return (
            f"its configuration says init_lora_weights={shown}: its factors belong to a base that this initialisation "
            "changed; save it again with PEFT's path_initial_model_for_weight_conversion, as a plain LoRA"
        )
    known = name in LEAVES_THE_RESULT_ALONE
    return (
        f"its configuration says {name}={shown}, "
        + ("which changes what it computes" if known else "a field that this version does not know")
        + " and cannot be imported"
    )


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {}, 0)
