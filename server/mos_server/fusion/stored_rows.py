"""Store every row that layers read, for solvers that work on activations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.errors import FusionError


@dataclass
class StoredRows:
    """The rows of each distinct input (`Layer.reads`), float32 in host memory."""

    stored: dict[str, list[Float[Tensor, "rows d_in"]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def bytes(self) -> int:
        """The memory that the rows take, in bytes."""
        return sum(part.numel() * part.element_size() for rows in self.stored.values() for part in rows)

    def fresh(self) -> StoredRows:
        """Return an empty store."""
        return StoredRows()

    def add(self, reads: str, rows: Float[Tensor, "rows d_in"], count: float | None = None) -> None:
        """Keep a copy of rows, which may be a view of a larger tensor or be overwritten later."""
        self.stored[reads].append(rows.to("cpu", torch.float32, copy=True))

    def merge(self, other: StoredRows) -> None:
        """Keep the rows of another store too."""
        for reads, rows in other.stored.items():
            self.stored[reads] += rows

    def finished(self) -> StoredRows:
        """Check that every row is finite and return the store.

        Raises:
            FusionError: an input was not finite; the message names the first.

        """
        for reads, rows in self.stored.items():
            if not all(bool(torch.isfinite(part).all()) for part in rows):
                raise FusionError(f"the activations of {reads} are not finite")
        return self

    def of(self, reads: str) -> Float[Tensor, "rows d_in"]:
        """Return every row of one input."""
        return torch.cat(self.stored[reads])
