"""What tuning has scored so far, read from the files that it keeps beside the concept file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def newest_progress(state: Path, ending: str) -> Path | None:
    """Return the newest `.progress` file of a state folder with an ending such as ".png"."""
    files = (state / "concepts").glob(f"*.progress{ending}")
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def scores_so_far(state: Path) -> dict[str, Any] | None:
    """Return the newest tuning's `evaluations` and the `best` of their steps, if there are any."""
    file = newest_progress(state, ".json")
    try:
        values = json.loads(file.read_bytes()) if file else None
        return values if isinstance(values, dict) and values.get("evaluations") else None
    except (OSError, ValueError):
        return None
