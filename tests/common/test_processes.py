"""Ending a process: by asking where that is enough, by killing where it is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from mos_common.processes import end_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to ignore")
IGNORES_IT = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def started(code: str) -> subprocess.Popen[bytes]:
    """A Python process that has run `code` and stays."""
    script = f"{code}\nimport time; print('ready', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    with process.stdout as output:
        assert output.readline() == b"ready\n"
    return process


def test_a_process_that_listens_ends_when_it_is_asked():
    assert end_process(started("pass"), grace_s=60) == -signal.SIGTERM


def test_a_stubborn_process_is_killed_after_its_grace():
    process, began = started(IGNORES_IT), time.monotonic()
    assert end_process(process, grace_s=0.3) == -signal.SIGKILL
    assert time.monotonic() - began >= 0.3
    assert process.poll() == -signal.SIGKILL


def test_a_process_that_has_ended_keeps_its_code():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    process.wait()
    assert end_process(process, grace_s=0.3) == 7
