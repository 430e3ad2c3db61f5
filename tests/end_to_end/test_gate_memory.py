"""Four participants send as much as they may at once: what that costs beside an honest round."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.app import Message, RecordDict

from flower_round import online
from mos_bench.demo import free_ports
from mos_bench.processes import Processes
from mos_common.base_model import Base
from mos_common.concept_file import bytes_at_most, concept_to_bytes
from mos_common.identity_scores import Identity
from mos_common.messages import Upload, identity_content, upload_content
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED
from strangers import Node

ATTACKERS = 4
SMALL = 16 << 20  # less than one answer at the bound
# What the process of a round reads first: a base whose concepts may have 64 MiB, as SD 1.5's. The
# module is changed when the round imports it: the process has to report to Flower before that.
AS_OF_A_LARGE_BASE = """
import importlib.abc, importlib.util, sys

class AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "mos_common.concept_file":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            module.bytes_at_most = lambda base: module.MAX_BYTES
        spec.loader.exec_module = exec_module
        return spec

if "mos_server.round.app" in sys.orig_argv:
    sys.meta_path.insert(0, AfterImport())
"""
Answers = Callable[[Message], RecordDict]


class Peaks:
    """The peak memory of a server and of the process of its round, in bytes."""

    def __init__(self, server: psutil.Process) -> None:
        self.server, self.round = 0, 0
        self._process = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.server = max(self.server, self._process.memory_info().rss)
            for child in self._process.children():
                with suppress(psutil.Error):
                    self.round = max(self.round, child.memory_info().rss)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch until the end of the block."""
        self._thread.start()
        yield
        self._done.set()
        self._thread.join()


class Members:
    """Participants that are online and answer every question, each in a thread."""

    def __init__(self, port: int, authority: Path) -> None:
        self._port, self._authority = port, authority
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def join(self, key: Node, answers: Answers) -> None:
        self._threads.append(threading.Thread(target=self._answer, args=(key, answers)))
        self._threads[-1].start()

    def leave(self) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _answer(self, key: Node, answers: Answers) -> None:
        with online(self._port, self._authority, key) as participant:
            while not self._over.is_set():
                if received := participant.receive():
                    question, _ = received
                    question.metadata.__dict__["_message_id"] = question.metadata.message_id
                    with suppress(httpx.HTTPError, RuntimeError):  # refused
                        participant.reply(question, answers(question))
                time.sleep(0.2)


def until_it_listens(port: int) -> None:
    until = time.monotonic() + 300
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.5)


def honest(data: bytes, single: float) -> Answers:
    def answers(question: Message) -> RecordDict:
        if question.metadata.message_type.startswith("train"):
            return upload_content(Upload(data, 1.0))
        return identity_content(Identity(0.1, single, 0.4, 0.9))

    return answers


def hostile(size: int) -> Answers:
    return lambda question: upload_content(Upload(os.urandom(size), 1.0))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("large", [False, True], ids=["what the base can need", "64 MiB"])
def test_four_at_the_bound_cost_less_than_half_as_much_again(tmp_path: Path, tiny: Base, make_concept, large: bool):
    state, environment = tmp_path / "server", {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    size = CONCEPT_BYTES_AT_MOST if large else bytes_at_most(tiny)
    if large:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(AS_OF_A_LARGE_BASE)
        environment["PYTHONPATH"] = str(tmp_path / "site")
    keys = [Node(tmp_path / f"node-{number}") for number in range(2 + ATTACKERS)]
    fleet, mos = free_ports(2)
    with Processes(environment) as processes:
        processes.do("operator", ["mos-server", "init", state, "--fleet-port", fleet, "--mos-port", mos])
        with closing(Journal(open_state(state).database)) as journal:
            for number, each in enumerate(keys):
                token, _ = journal.participants.invite(f"member-{number}", valid_s=3600)
                journal.participants.enrol(token, each.digest, each.pem)
        processes.start("server", ["mos-server", "serve", state])
        server = psutil.Process(processes.running["server"].pid)

        def peaks() -> Peaks:
            peaks = Peaks(server)
            with peaks.watched():
                processes.start("operator", ["mos-server", "round", state, "--wait", "2", "--set", "steps=2"])
                processes.wait("operator", timeout_s=1200, beside=["server"])
            return peaks

        until_it_listens(int(mos))
        until_it_listens(int(fleet))
        members = Members(int(fleet), open_state(state).pki.authority)
        for number, key in enumerate(keys[:2]):
            concept = make_concept(tiny, f"<c{number}>", seed=number, strength=0.03)
            members.join(key, honest(concept_to_bytes(concept), 0.5 + number / 10))
        before = peaks()
        for key in keys[2:]:
            members.join(key, hostile(size))
        time.sleep(5)
        attacked = peaks()
        members.leave()
        with closing(Journal(open_state(state).database)) as journal:
            refused = [each.participant for each in journal.uploads.of("round-002") if each.refused]
            statuses = [each.status for each in journal.rounds.all()]
        # Space is given back every few seconds, when nobody reads.
        until, database = time.monotonic() + 120, size
        while time.monotonic() < until and database >= SMALL:
            time.sleep(1)
            database = sum(path.stat().st_size for path in (state / "flower").glob("superlink.db*"))
    for who in ("server", "round"):
        one, other = getattr(before, who), getattr(attacked, who)
        print(f"{size} bytes, {who}: {one / 1e6:.0f} MB honest, {other / 1e6:.0f} MB attacked, {other / one:.2f} times")
    print(f"database {database / 1e6:.1f} MB, refused: {sorted(refused)}")
    assert statuses == [PUBLISHED, PUBLISHED]
    assert len(refused) == ATTACKERS
    assert database < SMALL
    assert attacked.server < 1.5 * before.server
    assert attacked.round < 1.5 * before.round
