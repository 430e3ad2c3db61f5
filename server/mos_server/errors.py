"""Errors of the server alone; it reports them as those that they are kinds of."""

from __future__ import annotations

from collections.abc import Sequence

from mos_common.errors import FusionError


class UndecidedError(FusionError):
    """Concepts contradict each other and only a person can choose among them, by their tokens."""

    def __init__(self, tokens: Sequence[str], question: str) -> None:
        super().__init__(question)
        self.tokens = tuple(tokens)
