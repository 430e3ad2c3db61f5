"""Lines that are cut and clocks that are wrong end nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from end_to_end.dying import Dying, warm
from end_to_end.federation import check_nothing_left
from mos_bench.processes import Processes
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit, write_kit
from relay import Relay


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def lined(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dying, list[Relay]]]:
    """A federation whose alice reaches both ports of the server through lines that can be cut."""
    with ExitStack() as stack:
        lines: list[Relay] = []

        def lead_alice(federation: Dying) -> None:
            """Put the lines' addresses into alice's kit."""
            alice = federation.participants[0]
            kit = read_kit(alice.kit)
            lines.extend(stack.enter_context(Relay(port_of(address))) for address in (kit.fleet, kit.mos))
            fleet, mos = (f"127.0.0.1:{line.port}" for line in lines)
            write_kit(kit.model_copy(update={"fleet": fleet, "mos": mos}), alice.kit)

        yield warm(tmp_path_factory.mktemp("cuts"), tuned, lead_alice), lines


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    check_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, 90])
@pytest.mark.parametrize("at", ["asked alice", "settings of fusion", "<bob/ginger> identity"])
def test_a_line_that_is_cut_for_a_while_costs_only_time(lined, undisturbed, seconds, at):
    federation, lines = lined
    federation.fresh()
    with Processes(federation.environment()) as processes:
        federation.start(processes)
        federation.ask(processes)
        federation.until(processes, lambda: any(note.startswith(at) for note in federation.notes()))
        for line in lines:
            line.cut()
        time.sleep(seconds)
        for line in lines:
            line.mend()
        federation.finish(processes)
    assert federation.published() == undisturbed


@pytest.mark.slow
def test_a_line_that_is_cut_for_ever_keeps_nobody_else_waiting(lined):
    """Alice's is cut when she is asked: after its grace the round is published with bob alone."""
    federation, lines = lined
    federation.fresh()
    bob = federation.participants[1]
    with Processes(federation.environment()) as processes:
        federation.start(processes)
        federation.ask(processes, "--wait", "1", "--grace", "20s")
        federation.until(processes, lambda: "asked alice" in federation.notes())
        for line in lines:
            line.cut()
        ended = ("operator", "bob")
        federation.until(processes, lambda: all(processes.running[name].poll() == 0 for name in ended))
        assert processes.running["alice"].poll() is None
        for line in lines:
            line.mend()
    model = read_fused(federation.server / "models" / "round-001").manifest
    assert [concept.token for concept in model.concepts] in ([bob.token], ["<alice/coral>", bob.token])


@pytest.mark.slow
@pytest.mark.parametrize("off_s", [600, -600], ids=["ahead", "behind"])
def test_a_participant_whose_clock_is_off_waits_and_is_in_the_round_once_it_is_right(lined, undisturbed, off_s, capfd):
    federation, _ = lined
    federation.fresh()
    clock = federation.root / "clock"
    clock.write_text(str(off_s))
    way = "ahead of" if off_s > 0 else "behind"
    said: list[str] = []

    def told() -> re.Match[str] | None:
        said.append(capfd.readouterr().out)
        return re.search(rf"clock is (\d+) s {way} the server's", "".join(said))

    with Processes(federation.environment()) as processes:
        federation.start(processes, joining=False)
        processes.env["MOS_TEST_CLOCK"] = str(clock)
        federation.again(processes, "alice")
        del processes.env["MOS_TEST_CLOCK"]
        federation.again(processes, "bob")
        federation.ask(processes)
        federation.until(processes, told)
        federation.until(processes, lambda: any("<bob/" in note for note in federation.notes()))
        time.sleep(15)
        assert processes.running["alice"].poll() is None
        assert not any("<alice/" in note for note in federation.notes())
        clock.write_text("0")
        federation.finish(processes)
    by = told()
    assert by is not None
    assert int(by[1]) == pytest.approx(abs(off_s), abs=10)  # a call takes its time
    assert federation.published() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [600, -600], ids=["forward", "back"])
def test_a_server_whose_clock_steps_ends_no_round_and_waits_no_longer(lined, undisturbed, step_s):
    """By more than the deadline, while it collects and nobody is there; later it is set right."""
    federation, _ = lined
    federation.fresh()
    clock = federation.root / "clock"
    clock.write_text("0")
    with Processes(federation.environment()) as processes:
        processes.env["MOS_TEST_CLOCK"] = str(clock)
        federation.start(processes, joining=False)
        del processes.env["MOS_TEST_CLOCK"]
        federation.ask(processes, "--deadline", "5m")
        federation.until(processes, lambda: federation.stands() == "collecting")
        clock.write_text(str(step_s))
        time.sleep(15)
        assert federation.stands() == "collecting"
        clock.write_text("0")
        for someone in federation.participants:
            federation.again(processes, someone.name)
        federation.finish(processes)
    assert federation.published() == undisturbed
