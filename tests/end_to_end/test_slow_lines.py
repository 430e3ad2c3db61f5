"""An honest participant on a slow line: 16 kB/s up and 32 kB/s down, through both ports.

All of what alice's client does goes through the line: Flower's SuperNode with its heartbeats as
well as the upload, and the download of the published model.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from end_to_end.federation import QUICK, Federation, join_tuned, processes, tuned_people
from mos_common.kit import read_kit, write_kit
from mos_server.state.records import PUBLISHED
from relay import Relay

UP, DOWN = 16_000.0, 32_000.0


@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--set", "rank=64"), marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
    ids=["160 kB", "2.2 MB"],
)
def test_complaint_5_a_round_on_a_slow_line_is_published_and_downloaded(tuned: Path, tmp_path: Path, more: tuple):
    with processes() as running, ExitStack() as stack:
        federation = Federation(tmp_path, running, tuned_people(tuned, tmp_path)[:1])
        (alice,) = federation.participants
        federation.create(sets=QUICK)
        kit = read_kit(alice.kit)
        lines = [
            stack.enter_context(Relay(int(address.rpartition(":")[2]), up_bytes_per_s=UP, down_bytes_per_s=DOWN))
            for address in (kit.fleet, kit.mos)
        ]
        fleet, mos = (f"127.0.0.1:{line.port}" for line in lines)
        write_kit(kit.model_copy(update={"fleet": fleet, "mos": mos}), alice.kit)
        federation.serve()
        running.start(alice.name, [*join_tuned(alice), *more])
        began = time.monotonic()
        round_ = federation.round("--deadline", "40m", timeout_s=2400)
        published_s = time.monotonic() - began
        running.wait(alice.name, timeout_s=2000, beside=["server"])
        (upload,) = federation.uploads()
        with federation.journal() as journal:
            notes = journal.notes.of("round-001", 0)
    asked, arrived = (next(at for _, at, text in notes if word in text) for word in ("asked alice", "arrived"))
    model = alice.state / "models" / "round-001"
    size = sum(file.stat().st_size for file in model.iterdir())
    assert upload.refused is None
    assert round_.status == PUBLISHED
    assert size > 0
    print(
        f"{upload.bytes} bytes up, {arrived - asked:.0f} s after the question; {size} bytes down; {published_s:.0f} s"
    )
    assert arrived - asked > upload.bytes / UP
