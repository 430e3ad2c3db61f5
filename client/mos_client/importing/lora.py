"""Read adapters of kohya, A1111, diffusers, PEFT, LyCORIS, OneTrainer and ComfyUI.

Tensors are grouped by layer, whatever a tool calls it, and each layer's change is computed by the
file of its kind in `adapters/`, one layer after the other. Linear layers and 1x1 convolutions are
imported. Anything else is refused by name, since an adapter with a part missing draws something
else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mos_client.importing.adapters import dora, full, loha, lokr, lora
from mos_client.importing.adapters.nearest import nearest, square_norm
from mos_client.importing.adapters.scaling import Scaling
from mos_client.importing.grouping import Grouped, as_float, group_by_layer
from mos_client.importing.peft_config import PeftConfig, configurations
from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.spellings import large_convolutions

LARGEST_ALPHA = 1e6  # beyond it a change is no number in half precision, whatever its factors
Change = Callable[[Mapping[str, Tensor], Scaling, Sequence[int]], LowRank | Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: the factors that it needs, those that it may have, and its equation.

    `needs` lists alternatives. `rank_of` names factors whose first axis is the rank.
    """

    needs: tuple[frozenset[str], ...]
    may_have: frozenset[str]
    change: Change
    rank_of: tuple[str, ...] = ()

    @property
    def known(self) -> frozenset[str]:
        """Every factor that it may have."""
        return frozenset().union(*self.needs) | self.may_have


def _kron(small: str, large: str) -> frozenset[str]:
    return frozenset((*small.split(), *large.split()))


KINDS = {
    "LoRA": Kind((frozenset("AB"),), frozenset({"mid"}), lora.change, ("A",)),
    "LoHa": Kind(
        (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        frozenset({"hada_t1", "hada_t2"}),
        loha.change,
        ("hada_w1_b",),
    ),
    "LoKr": Kind(
        tuple(
            _kron(small, large)
            for small in ("lokr_w1", "lokr_w1_a lokr_w1_b")
            for large in ("lokr_w2", "lokr_w2_a lokr_w2_b")
        ),
        frozenset({"lokr_t2"}),
        lokr.change,
        ("lokr_w2_b", "lokr_w1_b"),
    ),
    "a full-rank difference": Kind((frozenset({"diff"}),), frozenset(), full.change),
}


NOT_OF_LOW_RANK = {
    "magnitude": "DoRA",
    **{short: name for name, kind in KINDS.items() if name != "LoRA" for short in sorted(kind.known)},
}
"""Factors of changes that are not of low rank, and their kinds; a magnitude is beside others."""


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter's file: the change of each layer, as a pair.

    `kinds` are the kinds of change that it had. `whole` is ‖ΔW‖² of every layer, convolutions that
    were left out included; `kept` is that of the pairs.
    """

    pairs: Mapping[str, LowRank]
    kinds: tuple[str, ...] = ()
    whole: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)

    def joined(self, other: Adapter) -> Adapter:
        """Return this adapter with that of another part of the model."""
        return Adapter(
            {**self.pairs, **other.pairs},
            tuple(sorted({*self.kinds, *other.kinds})),
            {**self.whole, **other.whole},
            {**self.kept, **other.kept},
        )


def pairs_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: Base) -> dict[str, LowRank]:
    """Return the change of every layer of a LoRA, of the rank that it has in the file."""
    return dict(read_adapter(tensors, metadata, base).pairs)


def read_adapter(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    base: Base,
    *,
    rank: int | None = None,
    without_convolutions: bool = False,
) -> Adapter:
    """Return the change of every layer, of at most `rank`.

    Raises:
        ConceptError: a tensor belongs to another kind of adapter, to no layer of the base, or to an
            incomplete change; two tensors are the same part of one layer; the configuration asks
            for something else; or a change is no pair and no rank was given.

    """
    configs, grouped = configurations(metadata), group_by_layer(tensors, base)
    convolutions = large_convolutions(base)
    if not without_convolutions and (layer := next((layer for layer in grouped if layer in convolutions), None)):
        raise ConceptError(
            f"{next(iter(grouped[layer].names.values()))} changes a convolution larger than 1x1 ({layer}), which a "
            "concept cannot do: --leave-out-convolutions imports the rest, and says how much of the change is lost"
        )
    if rank is None:
        _check_low_rank(grouped)
    pairs, kinds = dict[str, LowRank](), set[str]()
    whole, kept = dict[str, float](), dict[str, float]()
    for layer, found in sorted(grouped.items()):
        module = convolutions[layer] if layer in convolutions else base.layout.by_name[layer].module
        kind, change = _change_of(layer, found, configs, module.weight.detach())
        kinds.add(kind)
        whole[layer] = square_norm(change)
        if layer in convolutions:
            continue
        pair = _pair_of(change, rank)
        pairs[layer], kept[layer] = pair, square_norm(pair)
    return Adapter(pairs, tuple(sorted(kinds)), whole, kept)


def _pair_of(change: LowRank | Tensor, rank: int | None) -> LowRank:
    if rank is not None:
        return nearest(change, rank)
    assert isinstance(change, LowRank)  # _check_low_rank
    return change


def _check_low_rank(grouped: Mapping[str, Grouped]) -> None:
    """Raise ConceptError for the first layer whose change is not of low rank by construction."""
    for found in grouped.values():
        if short := next((short for short in NOT_OF_LOW_RANK if short in found.names), None):
            raise ConceptError(
                f"{found.names[short]} is {NOT_OF_LOW_RANK[short]}, whose change is not of low rank: --rank 16 imports "
                "the nearest change of that rank, and says how much of it is lost"
            )


def _change_of(
    layer: str, found: Grouped, configs: Mapping[str, PeftConfig], weight: Tensor
) -> tuple[str, LowRank | Tensor]:
    """Return the kind of a layer's change, and the change.

    Raises:
        ConceptError: its factors do not make one, or not one that fits its configuration.

    """
    factors = {short: _as_factor(found.names[short], short, tensor) for short, tensor in found.factors.items()}
    alpha = factors.pop("alpha", None)
    magnitude = factors.pop("magnitude", None)
    name, kind = _kind_of(layer, factors)
    scaling = _scaling(layer, found, configs, next((factors[f].shape[0] for f in kind.rank_of if f in factors), None))
    if alpha is not None:
        scaling = _with_alpha(layer, float(alpha), scaling, factors)
    if scaling.alpha is not None and abs(scaling.alpha) > LARGEST_ALPHA:
        raise ConceptError(f"{layer} has the alpha {scaling.alpha:g}: expected at most {LARGEST_ALPHA:g}")
    if _config_of(layer, found.spelled, configs)[0].is_decomposed() not in (None, magnitude is not None):
        raise ConceptError(
            f"{layer} has {'a' if magnitude is not None else 'no'} magnitude, and the file's configuration says "
            f"use_dora={magnitude is None}: one of them is of another adapter"
        )
    try:
        change = kind.change(factors, scaling, weight.shape)
        if magnitude is not None:
            inner = change.change(torch.float64) if isinstance(change, LowRank) else change.double()
            name = "DoRA" if name == "LoRA" else f"DoRA of {name}"
            change = dora.decomposed(_shaped(inner, weight), weight.double(), magnitude.double())
        return name, change if isinstance(change, LowRank) else _shaped(change, weight)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{found.names[short]} {tuple(factor.shape)}" for short, factor in factors.items())
        raise ConceptError(f"{layer} of shape {tuple(weight.shape)} cannot have {name} of {shapes}") from error


def _shaped(change: Tensor, weight: Tensor) -> Tensor:
    """Return ΔW in the shape of the weight; ValueError if its rows differ, which reshape hides."""
    if len(change) != len(weight):
        raise ValueError
    return change.reshape(weight.shape)


def _kind_of(layer: str, factors: Mapping[str, Tensor]) -> tuple[str, Kind]:
    for name, kind in KINDS.items():
        if not factors.keys() & kind.known:
            continue
        if more := factors.keys() - kind.known:
            raise ConceptError(f"{layer} has factors of two kinds of adapter: {name}, and {min(more)}")
        if not any(needed == factors.keys() - kind.may_have for needed in kind.needs):
            needed = " or ".join(" and ".join(sorted(one)) for one in kind.needs)
            count = len(factors.keys() - kind.may_have)
            said = f"only {count} of its two factors" if name == "LoRA" else f"{' and '.join(sorted(factors))} alone"
            raise ConceptError(f"{layer} has {said}: the file is incomplete; {name} needs {needed}")
        return name, kind
    raise ConceptError(f"{layer} has only 0 of its two factors: the file is incomplete")


def _config_of(layer: str, spelled: str, configs: Mapping[str, PeftConfig]) -> tuple[PeftConfig, str]:
    """Return the configuration of a layer, and the layer's name as that configuration knows it."""
    part, _, ours = layer.partition(".")
    config = configs.get(part, configs[""])
    for prefix in (f"{part}.", "base_model.model."):
        if spelled.startswith(prefix):
            return config, spelled.removeprefix(prefix)
    return config, spelled if "." in spelled else ours


def _scaling(layer: str, found: Grouped, configs: Mapping[str, PeftConfig], rank: int | None) -> Scaling:
    config, module = _config_of(layer, found.spelled, configs)
    if not config.adapts(module):
        raise ConceptError(
            f"{next(iter(found.names.values()))} is in the file, but its configuration (target_modules, "
            f"exclude_modules, layers_to_transform) puts no adapter on {module}: one of them is of another adapter"
        )
    return config.scaling(module, rank)


def _with_alpha(layer: str, alpha: float, configured: Scaling, factors: Mapping[str, Tensor]) -> Scaling:
    """Return the scaling by a layer's own alpha.

    Raises:
        ConceptError: the configuration has another, or it is 0: some tools take that for no change
            and others for an alpha that equals the rank.

    """
    if configured.alpha is not None and (alpha != configured.alpha or configured.rank_stabilised):
        raise ConceptError(f"{layer} has alpha {alpha:g}, and the file's configuration says {configured.alpha:g}")
    if alpha == 0 and all(bool(factor.any()) for factor in factors.values()):
        raise ConceptError(
            f"{layer} has alpha 0, which some tools read as no change at all and others as an alpha that equals the "
            "rank: write the alpha that is meant into the file"
        )
    return Scaling(alpha)


def _as_factor(name: str, short: str, tensor: Tensor) -> Tensor:
    if short == "alpha":
        value = tensor.double() if tensor.numel() == 1 else tensor
        if tensor.numel() != 1 or not bool(torch.isfinite(value).all()):
            raise ConceptError(f"{name} has shape {tuple(tensor.shape)}; expected one finite number for an alpha")
        return value.reshape(())
    return as_float(name, tensor.detach())
