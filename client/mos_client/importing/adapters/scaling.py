"""The factor alpha/rank in front of every adapter's change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scaling:
    """The scale of one layer's change, as its file gives it.

    `alpha` is the layer's own, or that of the configuration; None if nothing is written, and then
    the scale is 1. `rank_stabilised`: the scale is alpha/√rank. `rank` is that of the
    configuration, for changes whose factors do not show theirs.
    """

    alpha: float | None = None
    rank_stabilised: bool = False
    rank: int | None = None

    def alpha_for(self, rank: int) -> float:
        """Return the alpha that, divided by `rank`, is the scale."""
        if self.alpha is None:
            return float(rank)
        return self.alpha * rank**0.5 if self.rank_stabilised else self.alpha

    def scale(self, rank: int | None) -> float:
        """Return the scale of a change of this rank; None: its factors have none."""
        rank = rank or self.rank
        return self.alpha_for(rank) / rank if rank else 1.0
