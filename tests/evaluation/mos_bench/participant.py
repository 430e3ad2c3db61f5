"""Somebody who takes part in the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Participant:
    """One participant of the demo: a name, a concept, and folders that nobody else looks into."""

    name: str
    concept: str
    class_word: str
    folder: Path

    @property
    def pictures(self) -> Path:
        """The private pictures."""
        return self.folder / "pictures"

    @property
    def state(self) -> Path:
        """Key, cache and downloads."""
        return self.folder / "state"

    @property
    def kit(self) -> Path:
        """What the operator sent."""
        return self.folder / "kit.json"

    @property
    def token(self) -> str:
        """How the fused model calls the concept."""
        return f"<{self.name}/{self.concept[1:]}"
