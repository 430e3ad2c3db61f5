"""A participant of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Participant:
    """One participant of the demo: a name, a concept, and private folders."""

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
        """The file that the operator sent."""
        return self.folder / "kit.json"

    @property
    def token(self) -> str:
        """The concept's token in the fused model."""
        return f"<{self.name}/{self.concept[1:]}"
