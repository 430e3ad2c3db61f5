"""Where ordinary prompts on untouched bases are kept, for every later fusion of this user.

Their moments do not depend on the concepts and hold nothing of anybody's, so no fusion needs to
record them again. The folder is in the user's cache, or in the one that MOS_CACHE names; it may be
removed at any time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import platformdirs

CACHE = "MOS_CACHE"
_KEPT_S = 90 * 24 * 3600.0  # files of other bases, settings and releases


def ordinary_folder() -> Path | None:
    """Return the folder, without what is older than three months; None: it cannot be written."""
    named = os.environ.get(CACHE)
    folder = (Path(named) if named else platformdirs.user_cache_path("mix-of-show")) / "ordinary"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.safetensors"):
            if time.time() - file.stat().st_mtime > _KEPT_S:
                file.unlink()
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
