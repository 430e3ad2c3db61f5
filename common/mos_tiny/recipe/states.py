"""The state of a training run, in one file that is written atomically."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError  # torch raises it for files of another kind
from typing import Any

import torch

from mos_common.errors import StateError
from mos_common.files import could_not_write


def save_state(path: Path, state: Any) -> None:
    """Write the state atomically: a run killed meanwhile continues from the previous one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(state, part)
        part.replace(path)
    except OSError as error:
        raise could_not_write(path, error) from error


def load_state(path: Path, device: str = "cpu") -> Any:
    """Load the state to continue from, or None if there is none yet.

    Raises:
        StateError: The file cannot be read as a state.

    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise StateError(
            f"{path} cannot be read as the state of a training run: move it away to start from scratch"
        ) from error
