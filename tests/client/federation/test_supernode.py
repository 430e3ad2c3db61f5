"""The supervised SuperNode: restarted when it ends, never twice at once, and ended with us."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mos_client.federation import supernode
from mos_client.federation.supernode import LONGEST_PAUSE_S, STABLE_S, SuperNode
from mos_common.errors import StateError

STAYS = "exec sleep 120"


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supernode, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def pretend(monkeypatch, tmp_path) -> Callable[[str], Path]:
    """Replace Flower's SuperNode by a shell script; return the file that logs its arguments."""
    program, starts = tmp_path / "flower-supernode", tmp_path / "starts"
    monkeypatch.setattr(supernode, "PROGRAM", (str(program),))

    def script(does: str) -> Path:
        program.write_text(f'#!/bin/sh\necho "$$ $*" >> {starts}\n{does}\n')
        program.chmod(0o755)
        return starts

    return script


@pytest.fixture
def node(tmp_path) -> Iterator[SuperNode]:
    node = SuperNode("127.0.0.1:9", tmp_path / "ca.crt", tmp_path / "node_key", tmp_path / "flower", 'state="here"')
    yield node
    node.stop()


def count(starts: Path) -> int:
    return len(starts.read_text().splitlines()) if starts.exists() else 0


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("code", [0, 1, 49, 255])
def test_however_it_ends_it_is_started_again_after_growing_pauses(node, pretend, clock, code):
    starts = pretend(f"exit {code}")
    pauses = []
    assert node.look_after()
    for number in range(1, 10):
        until(lambda: not node.look_after())
        pauses.append(0.0)
        while not node.look_after():
            assert count(starts) == number  # still within the pause
            pauses[-1] += 1
            clock.now += 1
        until(lambda started=number + 1: count(starts) == started)
    assert pauses[0] <= 2
    assert pauses == sorted(pauses)
    # Flower counts a node as online for a minute after its last heartbeat, and refuses a second.
    assert pauses[-1] == LONGEST_PAUSE_S > 60


def test_one_that_is_killed_is_started_again(node, pretend, clock):
    starts = pretend(STAYS)
    assert node.look_after()
    until(lambda: count(starts) == 1)
    os.kill(node._process.pid, signal.SIGKILL)
    until(lambda: not node.look_after())
    clock.now += LONGEST_PAUSE_S
    assert node.look_after()
    until(lambda: count(starts) == 2)


def test_one_that_lasted_is_started_again_soon(node, pretend, clock):
    pretend("exit 0")
    for _ in range(6):
        node.look_after()
        until(lambda: not node.look_after())
        clock.now += LONGEST_PAUSE_S
    pretend(STAYS)
    assert node.look_after()
    clock.now += STABLE_S + 1
    node._process.kill()
    until(lambda: not node.look_after())
    clock.now += 1.0
    assert node.look_after()


def test_a_running_one_is_left_alone(node, pretend):
    starts = pretend(STAYS)
    threads = [threading.Thread(target=lambda: [node.look_after() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: count(starts) >= 1)
    assert count(starts) == 1


def test_every_start_has_its_own_secret_which_nobody_else_reads(node, pretend, clock):
    pretend("exit 0")
    secrets, ports = set(), set()
    for _ in range(3):
        assert node.look_after()
        secrets.add(node.secret_file.read_bytes())
        ports.add(node.address)
        assert stat.S_IMODE(node.secret_file.stat().st_mode) == 0o600
        until(lambda: not node.look_after())
        clock.now += LONGEST_PAUSE_S
    assert len(secrets) == 3
    assert all(len(secret) >= 32 for secret in secrets)
    assert all(address.startswith("127.0.0.1:") for address in ports)


def test_it_runs_no_code_of_the_operator_and_listens_on_loopback_alone(node, pretend):
    starts = pretend(STAYS)
    node.look_after()
    until(lambda: count(starts) == 1)
    words = starts.read_text().split()
    for option, value in (("--isolation", "process"), ("--host", "127.0.0.1"), ("--superlink", node.fleet)):
        assert words[words.index(option) + 1] == value
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(node.secret_file)
    assert "--insecure" not in words
    assert node.secret_file.read_text() not in starts.read_text()  # other users see the list of processes


def test_one_that_will_not_end_is_ended(node, pretend, monkeypatch):
    monkeypatch.setattr(supernode, "_TERM_S", 0.3)
    starts = pretend("trap '' TERM INT HUP\nwhile :; do sleep 0.2; done")
    node.look_after()
    until(lambda: count(starts) == 1)
    pid = node._process.pid
    node.stop()
    assert not alive(pid)
    node.stop()  # stopping twice has no effect


def test_once_stopped_it_is_not_started_again_by_a_thread_that_comes_late(node, pretend):
    starts = pretend(STAYS)
    assert node.look_after()
    until(lambda: count(starts) == 1)
    node.stop()
    assert not node.look_after()
    assert count(starts) == 1


def test_a_full_disk_is_said_and_tried_again_after_a_pause(node, pretend, clock, monkeypatch):
    starts = pretend(STAYS)

    def full(*given: object, **options: object) -> None:
        raise StateError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(supernode, "write_atomically", full)
        with pytest.raises(StateError, match=r"the disk is full.*trying again in 2 s"):
            node.look_after()
        assert not node.look_after()
    assert count(starts) == 0
    clock.now += 2.0
    assert node.look_after()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_it_ends_with_a_participant_that_is_killed(tmp_path):
    starts, stand_in = tmp_path / "starts", tmp_path / "stand_in.py"
    stand_in.write_text(
        "import os, time; from pathlib import Path; from mos_client.federation.run_supernode import end_with_parent\n"
        f"end_with_parent(); Path({str(starts)!r}).write_text(f'{{os.getpid()}}\\n'); time.sleep(60)\n"
    )
    program = (
        "import sys, time; from pathlib import Path; from mos_client.federation import supernode; p = Path(sys.argv[1]);"
        "supernode.PROGRAM = (sys.executable, str(p / 'stand_in.py')); "
        "n = supernode.SuperNode('127.0.0.1:9', p, p, p / 'flower', ''); n.look_after(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as participant:
        until(lambda: count(starts) == 1)
        pid = int(starts.read_text())
        assert alive(pid)
        participant.kill()
    until(lambda: not alive(pid))


@pytest.mark.parametrize(
    ("ends", "code"), [("return", 1), ("raise SystemExit(7)", 7), ("raise SystemExit", 0), ("raise OSError('gone')", 1)]
)
def test_its_process_ends_with_its_main_thread_whatever_others_do(ends, code):
    """As Flower's does when it has given its connection up, while its local port goes on."""
    program = (
        "import threading, time\n"
        "from mos_client.federation.run_supernode import run_to_its_end\n"
        "def command():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"    {ends}\n"
        "run_to_its_end(command)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code
    assert ("OSError: gone" in done.stderr) == ("OSError" in ends)


def test_its_process_ends_with_the_first_thread_that_fails():
    """As that of the heartbeat does, when it is answered with a status it does not expect."""
    program = (
        "import threading, time\n"
        "from mos_client.federation.run_supernode import run_to_its_end\n"
        "def fail():\n"
        "    raise OSError('gone')\n"
        "def command():\n"
        "    threading.Thread(target=fail, daemon=True).start()\n"
        "    time.sleep(60)\n"
        "run_to_its_end(command)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "OSError: gone" in done.stderr
