"""Settings of TIES and DARE, and peft's merges, whose code was written by their authors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.layerwise import dense_merge


@dataclass(frozen=True)
class SparseSettings:
    """The factor of the merge, and the share kept of each change."""

    sum_weight: float = setting(0.6, "factor that every change is multiplied with")
    density: float = setting(0.2, "share of each change's entries that is kept")

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise RequestError(f"density {self.density}: expected a share above 0, at most 1")


def peft_merges() -> Any:
    """Return peft's module of merges.

    Raises:
        RequestError: peft is not installed.

    """
    try:
        from peft.utils import merge_utils
    except ImportError as error:
        raise RequestError(
            "ties and dare come from peft, which is not installed: pip install 'federated-mix-of-show[rivals]'"
        ) from error
    return merge_utils


def sparse_merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: SparseSettings,
    merge: Callable[[str, list[Tensor], Tensor], Tensor],
) -> dict[str, LowRank]:
    """Merge the dense changes of one layer after another, each times sum_weight · wi."""
    scaled = {token: settings.sum_weight * weight for token, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # peft warns of 1, which is deliberate here
        return dense_merge(base, concepts, scaled, merge)
