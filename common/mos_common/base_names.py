"""Names of a base model: on the command line, in state folders, in manifests and kits.

This module imports nothing heavy, so commands that only need a name start at once.
"""

from __future__ import annotations

from pathlib import Path

TINY = "tiny"
CHECKPOINTS = (".safetensors", ".ckpt")
CACHED = "models--"  # the hub's cache: models--OWNER--MODEL/snapshots/COMMIT
SNAPSHOTS = "snapshots"


def absolute_name(name: str) -> str:
    """Return the name under which a base is found from any working folder."""
    path = Path(name).expanduser()
    if name == TINY or not path.exists():
        return name
    # A checkpoint may be a link to a file of another name, without what lies beside the link.
    return str(path.resolve() if path.is_dir() else path.absolute())


def short_name(name: str) -> str:
    """Return a base's name without the path, which is its owner's business.

    A checkpoint is called by its file without the suffix, a snapshot of the hub's cache by its
    model.
    """
    path = Path(name)
    if path.parent.name == SNAPSHOTS:
        path = path.parent.parent
    if path.name.startswith(CACHED):
        return path.name.removeprefix(CACHED).rpartition("--")[2]
    return path.stem if path.suffix.lower() in CHECKPOINTS else path.name
