"""The interface of everything that rows are recorded into."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor


class RowSink(Protocol):
    """A destination of recorded rows: second moments (`Moments`) or the rows (`StoredRows`)."""

    def fresh(self) -> Self:
        """Return an empty sink of the same kind, for rows that may have to be discarded."""

    def add(self, reads: str, rows: Tensor, count: float | None = None) -> None:
        """Take rows (rows x d_in) of one input; `count` is their number or sum of weights."""

    def merge(self, other: Self) -> None:
        """Take all rows of another sink."""

    def finished(self) -> Self:
        """Return the sink, checked and complete.

        Raises:
            FusionError: an input was not finite; the message names the first.

        """
