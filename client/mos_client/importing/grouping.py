"""Group the tensors of an adapter's file by the layer that they change.

A name is a layer, as some tool spells it, and a factor of its change: `FACTOR` reads the factor,
`mos_common.spellings` the layer. Whatever is on neither table is refused by name (`refusals.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mos_client.importing.refusals import kind_of, unknown_layer
from mos_common.base_model import Base
from mos_common.errors import ConceptError
from mos_common.spellings import spellings, spellings_of_convolutions

FACTOR = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?:\.lora)?(?:_linear_layer|_layer)?\.(?:lora_)?(?P<half>A|B|down|up|mid)(?:(?<=lora_[AB])\.[\w-]+)?\.weight"
    r"|\.(?:lora_(?P<magnitude>magnitude_vector)(?:\.[\w-]+?)?(?:\.weight)?)"
    r"|\.(?P<other>alpha|dora_scale|diff|(?:hada|lokr)_[wt][12](?:_[ab])?)"
    r")"
)
SHORT = {"down": "A", "up": "B", "dora_scale": "magnitude", "magnitude_vector": "magnitude"}
# Trained biases and norms: those that are zero change nothing, and are left out.
NOTHING_IF_ZERO = re.compile(r".+\.(?:diff_b|w_norm|b_norm|lora_(?:A|B|down|up)(?:\.default)?\.bias)")


@dataclass
class Grouped:
    """The factors of one layer by their short names, their tensors' names, and its spelling."""

    spelled: str
    factors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, layer: str, short: str, name: str, tensor: Tensor) -> None:
        """Add one tensor.

        Raises:
            ConceptError: the layer has that factor already.

        """
        if short in self.factors:
            raise ConceptError(f"{self.names[short]} and {name} are the same factor of {layer}: keep one of them")
        self.factors[short], self.names[short] = tensor, name


def group_by_layer(tensors: Mapping[str, Tensor], base: Base) -> dict[str, Grouped]:
    """Return the tensors of every layer, by our name of the layer, convolutions included.

    Raises:
        ConceptError: a tensor is no factor of a known kind, belongs to no layer of the base, or to
            one that the file changes under another spelling too.

    """
    table = spellings(base) | spellings_of_convolutions(base)
    grouped: dict[str, Grouped] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if match is None:
            if NOTHING_IF_ZERO.fullmatch(name) and not bool(as_float(name, tensor).any()):
                continue
            raise ConceptError(f"{name} is {kind_of(name)}")
        spelled = match["layer"]
        if spelled not in table:
            raise ConceptError(unknown_layer(spelled, name, tensors, base))
        layer, factor = table[spelled], match["half"] or match["magnitude"] or match["other"]
        found = grouped.setdefault(layer, Grouped(spelled))
        if found.spelled != spelled:
            raise ConceptError(
                f"{next(iter(found.names.values()))} and {name} both change {layer}, in two spellings: "
                "keep the one that is meant"
            )
        # PEFT's magnitudes are one for each output, even if their shape is (1, outputs, 1, 1).
        values = as_float(name, tensor).flatten() if match["magnitude"] else tensor
        found.add(layer, SHORT.get(factor, factor), name, values)
    return grouped


def as_float(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in float32 (float64 stays as it is).

    Raises:
        ConceptError: it does not hold floating-point numbers, or not finite ones.

    """
    if not tensor.is_floating_point():
        raise ConceptError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers: "
            "quantised adapters cannot be imported"
        )
    values = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not torch.isfinite(values).all():
        raise ConceptError(f"{name} holds NaN or infinity: the file is broken")
    return values
