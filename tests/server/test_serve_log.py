"""The log in the state folder, on a disk that is full."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from mos_server.serve import StateLog

FULL = Path("/dev/full")  # every write to it finds the disk full


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_lines_that_find_the_disk_full_are_lost_and_that_is_said_once(tmp_path, capfd):
    (tmp_path / "serve.log").symlink_to(FULL)
    log = StateLog(tmp_path / "serve.log", maxBytes=100, backupCount=3)
    for number in range(5):
        log.handle(logging.LogRecord("mos_server", logging.INFO, "", 0, f"line {number}", None, None))
    with contextlib.suppress(OSError):
        log.close()
    told = capfd.readouterr().err
    assert told.count("lines of the log are lost") == 1
    assert "the disk is full; make room" in told
    assert "Traceback" not in told


def test_a_log_that_cannot_be_rotated_goes_on(tmp_path, monkeypatch, capfd):
    log = StateLog(tmp_path / "serve.log", maxBytes=60, backupCount=1)
    record = logging.LogRecord("mos_server", logging.INFO, "", 0, "x" * 40, None, None)

    def rotate(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "rotate", rotate)
    for _ in range(4):
        log.handle(record)
    monkeypatch.undo()
    log.handle(record)
    log.close()
    assert capfd.readouterr().err.count("lines of the log are lost") == 1
    assert "x" * 40 in (tmp_path / "serve.log").read_text()
