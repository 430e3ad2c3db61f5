"""End the processes that we start."""

from __future__ import annotations

import subprocess


def end_process(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Ask a process to end, kill it if it has not within `grace_s` seconds, and return its exit code.

    The code is negative where a signal ended it: -15 if asking was enough, -9 if it was killed. A process that has ended
    already is left alone.
    """
    process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
