"""Rounds of many participants, and what they cost: the crowd of `crowd.py`, or stock SuperNodes.

Every federation is made anew, with the same names and the same concept files, so that every round
of n participants has the same model. The concepts are built, not tuned: rank 1, another random
direction for each participant, a hundredth of the norm of every layer. That is as much as a
few steps of tuning change, and so equal that none ruins another.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from end_to_end.crowd import KILLED
from end_to_end.federation import CONCEPTS
from mos_bench.demo import free_ports
from mos_bench.processes import Processes
from mos_client.federation.remembered import look_at, remember
from mos_client.federation.session import Session
from mos_client.tuning.request import TuneRequest
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import write_concept
from mos_common.edlora import LowRank
from mos_server.cli.init import init
from mos_server.cli.people import invite
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_tiny import demo_concepts

CHANGE = 0.01  # of the norm of each layer
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
}
# One context at two steps: what is recorded of a concept takes a second or less.
QUICK = ("--set", "steps=2", "--set", "contexts=V", "--set", "ordinary=a")
ROUND_ID = "round-001"


@dataclass(frozen=True)
class Member:
    """A participant of a federation of many: `folder` has its kit and its state."""

    folder: Path
    session: Session

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def join(self) -> list[str | Path]:
        """`mos-client join` as this participant would type it."""
        request = self.session.request
        command: list[str | Path] = ["mos-client", "join", self.folder / "kit.json", request.images]
        command += ["--concept", request.concept, "--class", request.class_word]
        return [*command, "--state", self.session.state, "--rounds", "1"]


@dataclass
class Figures:
    """What a round was and cost: its manifest, seconds, and bytes of memory and disk at their peak.

    `participants` is the memory of all of them together.
    """

    manifest: bytes = b""
    killed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    server_cpu_s: float = 0.0
    round_cpu_s: float = 0.0
    server: int = 0
    round: int = 0
    participants: int = 0
    database: int = 0
    state: int = 0


@dataclass(frozen=True)
class Federation:
    """A server that was never started, and participants whose concepts are made."""

    out: Path
    members: list[Member]

    @property
    def server(self) -> Path:
        return self.out / "server"

    @property
    def people(self) -> Path:
        return self.out / "participants"


def make_federation(out: Path, count: int, base: Base) -> Federation:
    """Make a server, invite `count` participants, and make the concept of each."""
    server, people = out / "server", out / "participants"
    fleet, mos = free_ports(2)
    init(server, fleet_port=int(fleet), mos_port=int(mos))
    sources = [demo_concepts() / name for name in CONCEPTS]
    members = []
    for number in range(count):
        source = sources[number % len(sources)]
        about = json.loads((source / "concept.json").read_text(encoding="utf-8"))
        images = out / "pictures" / source.name
        if not images.exists():
            shutil.copytree(source, images)
        folder = people / f"p{number:02}"
        folder.mkdir(parents=True)
        invite(server, folder.name, folder / "kit.json")
        request = TuneRequest(images, about["name"], about["class"])
        session = Session(folder / "state", base.fingerprint, request)
        session.cached().parent.mkdir(parents=True)
        write_concept(small_concept(base, request, number), session.cached())
        tuned_on, held_back = request.pictures()
        remember(session.state, look_at(images, [*tuned_on, *held_back]))
        session.save()
        members.append(Member(folder, session))
    return Federation(out, members)


def small_concept(base: Base, request: TuneRequest, seed: int) -> Concept:
    """Return a concept that changes every attention layer a little, in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pairs = {}
    for layer in base.layout.attention:
        A, B = normal(1, layer.d_in), normal(layer.d_out, 1)
        size = CHANGE * float(layer.module.weight.norm()) / float(A.norm() * B.norm())
        pairs[layer.name] = LowRank(A * size**0.5, B * size**0.5, 1.0)
    words = tuple(
        normal(base.layout.word_layers, 2, table.shape[1]) * table.float().std() for table in base.token_tables
    )
    return Concept(
        name=request.concept,
        class_word=request.class_word,
        base_fingerprint=base.fingerprint,
        pairs=pairs,
        words=words,
        tool_version="a test",
        licence="",
        author="",
    )


def crowd_round(federation: Federation, *crowd: str, timeout_s: float = 2400) -> Figures:
    """Run a round with all participants in one process; `crowd` are flags of `crowd.py`."""
    with (
        Processes(ENVIRONMENT) as processes,
        running_crowd(processes, federation, *crowd, timeout_s=timeout_s) as figures,
    ):
        pass
    return figures


@contextmanager
def running_crowd(
    processes: Processes, federation: Federation, *crowd: str, timeout_s: float = 2400
) -> Iterator[Figures]:
    """Start a round with a crowd, and wait for its end at the end of the block."""
    figures = Figures()
    server, people, operator = (f"{federation.out.name} {who}" for who in ("server", "crowd", "operator"))
    processes.start(server, ["mos-server", "serve", federation.server])
    processes.start(people, ["python", "-m", "end_to_end.crowd", federation.people, *crowd])
    pids = [processes.running[people].pid]
    with _watched(figures, federation, processes.running[server].pid, lambda: pids):
        processes.start(operator, ask_command(federation))
        yield figures
        processes.wait(operator, timeout_s=timeout_s, beside=[server, people])
        processes.wait(people, timeout_s=300, beside=[server])
    processes.stop(server)
    figures.killed = json.loads((federation.people / KILLED).read_text())
    _finish(figures, federation)


def stock_round(
    federation: Federation, *, kill_every_s: float = 0.0, stagger_s: float = 3.0, timeout_s: float = 2400
) -> Figures:
    """Run a round with a `mos-client join` and a SuperNode for each; kill these with SIGKILL."""
    figures = Figures()
    members = {member.name: member for member in federation.members}
    with Processes(ENVIRONMENT) as processes:
        processes.start("server", ["mos-server", "serve", federation.server])
        pids = dict.fromkeys(members, 0)
        with _watched(
            figures, federation, processes.running["server"].pid, lambda: [each for each in pids.values() if each]
        ):
            for name, member in members.items():
                processes.start(name, member.join)
                pids[name] = processes.running[name].pid
                time.sleep(stagger_s)
            processes.start("operator", ask_command(federation))
            kill_at = time.monotonic() + kill_every_s if kill_every_s else float("inf")
            end = time.monotonic() + timeout_s
            while any(processes.running[name].poll() is None for name in ("operator", *members)):
                assert time.monotonic() < end, f"not within {timeout_s:.0f} s"
                time.sleep(0.5)
                left = [name for name in unscored(federation) if name not in figures.killed]
                if time.monotonic() >= kill_at and left:
                    kill_at += kill_every_s
                    victim = left[len(figures.killed) % len(left)]
                    figures.killed.append(victim)
                    os.killpg(pids[victim], signal.SIGKILL)
                    processes.running[victim].wait()
                    processes.start(victim, members[victim].join)
                    pids[victim] = processes.running[victim].pid
            codes = {name: processes.running[name].returncode for name in ("operator", *members)}
            assert not any(codes.values()), codes
        processes.stop("server")
    _finish(figures, federation)
    return figures


def unscored(federation: Federation) -> list[str]:
    """Return who has not sent scores, in an order that has nothing to do with arrival."""
    with closing(Journal(open_state(federation.server).database)) as journal:
        scored = {each.participant for each in journal.uploads.of(ROUND_ID) if each.identity is not None}
    return [member.name for member in federation.members if member.name not in scored]


def ask_command(federation: Federation) -> list[str | Path]:
    """`mos-server round` for a round of all participants."""
    command: list[str | Path] = ["mos-server", "round", federation.server, "--wait", str(len(federation.members))]
    return [*command, "--deadline", "45m", *QUICK]


def _finish(figures: Figures, federation: Federation) -> None:
    """Add the manifest, which everybody has, and the seconds of each part of the round."""
    state = open_state(federation.server)
    figures.manifest = (state.artefacts.model(ROUND_ID) / "manifest.json").read_bytes()
    for member in federation.members:
        assert (member.session.models / ROUND_ID / "manifest.json").read_bytes() == figures.manifest
    with closing(Journal(state.database)) as journal:
        round_ = journal.rounds.get(ROUND_ID)
        uploaded = max(upload.received for upload in journal.uploads.of(ROUND_ID))
        scoring = min(at for _, at, text in journal.notes.of(ROUND_ID) if text.startswith("the candidate is being"))
    ends = {"collect": uploaded, "fuse": scoring, "score": round_.ended or scoring}
    begun = round_.asked
    for part, end in ends.items():
        figures.seconds[part], begun = end - begun, end


@contextmanager
def _watched(
    figures: Figures, federation: Federation, server_pid: int, people: Callable[[], list[int]]
) -> Iterator[None]:
    """Keep the peaks of memory and disk within the block, and the server's processor time."""
    server, over = psutil.Process(server_pid), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            figures.server = max(figures.server, server.memory_info().rss)
            with suppress(psutil.Error):
                figures.server_cpu_s = sum(server.cpu_times()[:2])
                for child in server.children():
                    figures.round = max(figures.round, child.memory_info().rss)
                    figures.round_cpu_s = max(figures.round_cpu_s, sum(child.cpu_times()[:2]))
            figures.participants = max(figures.participants, sum(map(_memory, people())))
            figures.database = max(figures.database, _bytes(federation.server / "flower", "superlink.db*"))
            figures.state = max(figures.state, _bytes(federation.server, "**/*"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _memory(pid: int) -> int:
    """Return the memory of a process and its children; what they share counts for one of them."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)])
    return 0


def _bytes(folder: Path, pattern: str) -> int:
    total = 0
    for path in folder.glob(pattern):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
