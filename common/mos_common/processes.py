"""Ending the processes that we start."""

from __future__ import annotations

import subprocess


def end_process(process: subprocess.Popen[bytes] | subprocess.Popen[str], grace_s: float) -> int:
    """Terminate a process, kill it if it runs on for `grace_s` seconds, and return its exit code.

    The code is negative if a signal ended it: -15 for SIGTERM, -9 if it was killed. A process that
    has already ended is left alone.
    """
    process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
