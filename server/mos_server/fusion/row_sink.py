"""Take the rows that layers read, whatever is then made of them."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor


class RowSink(Protocol):
    """What rows are recorded into: second moments (`Moments`), or the rows (`StoredRows`)."""

    def fresh(self) -> Self:
        """Return an empty sink of the same kind, for rows that may have to be thrown away."""

    def add(self, reads: str, rows: Tensor, count: float | None = None) -> None:
        """Take rows (rows x d_in) of one input; `count` is their number, or their weights' sum."""

    def merge(self, other: Self) -> None:
        """Take everything that another sink has taken."""

    def finished(self) -> Self:
        """Return the same, checked and complete.

        Raises:
            FusionError: an input was not finite; the message names the first.

        """
