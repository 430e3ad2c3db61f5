"""Count and list files in messages."""

from __future__ import annotations

from collections.abc import Sequence

FEW = 3


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 picture", "3 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def few(names: Sequence[str], most: int = FEW) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
