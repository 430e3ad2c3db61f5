"""What a training needs to go on after it was stopped: one file, whole or not there."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file that is none of its own
from typing import Any

import torch

from mos_common.errors import StateError
from mos_common.files import could_not_write


def save_state(path: Path, state: Any) -> None:
    """Write the state beside its place and rename it: a training killed meanwhile goes on from the one before."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(state, part)
        part.replace(path)
    except OSError as error:
        raise could_not_write(path, error) from error


def load_state(path: Path, device: str = "cpu") -> Any:
    """The state to go on from, or None where nothing was trained yet.

    Raises:
        StateError: the file is no state.

    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise StateError(f"{path} cannot be read as the state of a training: move it away to start afresh") from error
