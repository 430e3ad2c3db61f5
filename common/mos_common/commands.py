"""Commands that messages tell people to type: quoted, so that they run as they are printed."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path


def command_line(*words: object) -> str:
    """Return a command for this machine's shell, each word quoted where it must be.

    A path that begins with a dash gets `./` before it, so that it is not read as a flag.
    """
    texts = [
        f".{os.sep}{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words
    ]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def draw_command(model: Path, prompt: str, base: str) -> str:
    """Return the command that draws `prompt` with a model on its base."""
    of_base = () if base == "tiny" else ("--base", base)
    return command_line("mos-client", "draw", model, prompt, *of_base, "--out", "picture.png")
