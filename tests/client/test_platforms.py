"""mos-client where POSIX is missing: no fcntl, no os.fchmod, no prctl, as on Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Run first in a process of its own. filelock and psutil choose by operating system: they are loaded
# before fcntl is removed; on Windows they use other modules.
WITHOUT_POSIX = """
import builtins, ctypes, os, sys
import filelock, psutil, torch, flwr.app, multiprocessing, subprocess, tempfile, asyncio, concurrent.futures
POSIX_ONLY = {"fcntl", "pwd", "grp", "resource", "termios"}
for name in POSIX_ONLY:
    sys.modules[name] = None
for name in ("fchmod", "geteuid", "getuid", "O_DIRECTORY"):
    delattr(os, name)
def no_prctl(name, *given, **settings):
    raise TypeError("CDLL(None) is for POSIX")
ctypes.CDLL = no_prctl
"""

IMPORTS = """
import importlib, pkgutil
import mos_client
names = [m.name for m in pkgutil.walk_packages(mos_client.__path__, "mos_client.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

LOCKS_AND_WRITES = """
from pathlib import Path
from mos_client.federation.session import locked
from mos_common.errors import StateError
from mos_common.files import replacing_folder, write_atomically
from mos_common.node_key import create_node_key, load_node_key
folder = Path(sys.argv[1])
with locked(folder / "state"):
    try:
        with locked(folder / "state"):
            print("both")
    except StateError as error:
        print(error)
with locked(folder / "state"):
    create_node_key(folder / "key")
    load_node_key(folder / "key")
    for text in (b"one", b"two"):
        write_atomically(folder / "file", text)
        with replacing_folder(folder / "model") as new:
            (new / "file").write_bytes(text)
print((folder / "file").read_text(), (folder / "model" / "file").read_text())
"""


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", WITHOUT_POSIX + script, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_every_module_is_imported_without_posix():
    done = run(IMPORTS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 35


def test_locks_keys_and_files_work_without_posix(tmp_path):
    done = run(LOCKS_AND_WRITES, tmp_path)
    assert done.returncode == 0, done.stderr
    refused, written = done.stdout.splitlines()
    assert "another mos-client join is running" in refused
    assert written == "two two"


@pytest.mark.parametrize("broken", ["sys.modules['ctypes'] = None", "import ctypes; ctypes.CDLL = None"])
def test_a_supernode_starts_where_prctl_is_missing(broken):
    program = (
        f"import sys; {broken}\n"
        "from mos_client.federation.run_supernode import end_with_parent\n"
        "end_with_parent()\n"
        "print('started')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_files_are_readable_by_their_owner_alone_where_that_is_asked_for(tmp_path: Path):
    from mos_common.files import write_atomically

    write_atomically(tmp_path / "secret", b"x", mode=0o600)
    write_atomically(tmp_path / "open", b"x")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("secret", "open")] == [0o600, 0o644]
