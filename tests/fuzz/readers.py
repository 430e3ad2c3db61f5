"""Every reader of what strangers send, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fuzz import bases, drawn, files, trusted, wire
from fuzz.reader import Reader

MAKERS: Mapping[str, Callable[[Path], Reader]] = {
    **files.MAKERS,
    **drawn.MAKERS,
    **wire.MAKERS,
    **trusted.MAKERS,
    **bases.MAKERS,
}
