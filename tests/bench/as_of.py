"""Whole fusions by the code of an earlier commit, and by this one, each in processes of its own.

The earlier code is checked out beside the repository and put before ours on the path, so that both
run with the same libraries on the same machine. Only what both have is called: `fuse`, and the
command `mos-server fuse`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = ("client", "common", "server", "tests/bench", "tests/evaluation")
_MEASURE = """
import json, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(2)
from synthetic import random_concept
from mos_common.base_model import load_base
from mos_common.concept_file import write_concept
from mos_server.fusion.fuse import fuse
count, files = int(sys.argv[1]), Path(sys.argv[2])
base = load_base("tiny", device="cpu")
concepts = [random_concept(base, seed) for seed in range(count + 1)]
for seed, named in enumerate(concepts[:count]):
    write_concept(replace(named.concept, name=f"<cat-{seed}>"), files / f"{seed}.safetensors")
def seconds(chosen, kept):
    started = time.perf_counter()
    fuse(base, chosen, moments_dir=kept, progress=lambda line: None)
    return time.perf_counter() - started
seconds(concepts[:1], None)
with tempfile.TemporaryDirectory() as folder:
    kept = Path(folder)
    took = {"fuse": seconds(concepts[:count], kept)}
    took["join"], took["leave"] = seconds(concepts, kept), seconds(concepts[1:], kept)
print(json.dumps(took))
"""
_COMMAND = """
try:
    from mos_server.cli.main import main
except ImportError:
    from mos_server.cli import main
main()
"""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def whole_fusion(tree: Path, count: int) -> dict[str, float]:
    """Return seconds of fusing, of one join and one leave with a loaded base, and of the command.

    The base and everything that a user keeps between commands have been used once before.
    """
    paths = os.pathsep.join(str(tree / folder) for folder in _FOLDERS)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        environment = os.environ | {"PYTHONPATH": paths, "MOS_CACHE": str(files / "cache")}
        run = [sys.executable, "-c"]
        measured = subprocess.run(
            [*run, _MEASURE, str(count), folder],
            env=environment,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        took: dict[str, float] = json.loads(measured.stdout)
        concepts = [str(file) for file in sorted(files.glob("*.safetensors"))]
        started = time.perf_counter()
        command = ["fuse", *concepts, "--out", str(files / "fused")]
        subprocess.run([*run, _COMMAND, *command], env=environment, cwd=folder, check=True, capture_output=True)
        return took | {"command": time.perf_counter() - started}
