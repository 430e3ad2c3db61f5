"""A difference written whole, as LyCORIS' `full` and extraction tools do it: ΔW itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mos_client.importing.adapters.scaling import Scaling


def change(factors: Mapping[str, Tensor], scaling: Scaling, shape: Sequence[int]) -> Tensor:
    """Return ΔW; a difference has no alpha."""
    return factors["diff"]
