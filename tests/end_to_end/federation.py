"""A federation for a test: its folders, made in this process, and the processes that run on them.

Whatever loads the base model takes most of the time of a small round. Two such commands are run by
`test_round.py` as a person would run them, and by nobody else: `mos-server init`, which takes the
base's fingerprint, and a `mos-client join` that tunes. Elsewhere a server's folder is made by the
function of the command, and participants bring concepts that were tuned once for all tests.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from mos_bench.demo import PARTICIPANTS, free_ports, join_command, prepare
from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_file
from mos_client.tuning.request import TuneRequest
from mos_common.base_model import Base
from mos_server.cli.init import init
from mos_server.cli.people import invite
from mos_server.state.folder import State, open_state
from mos_server.state.journal import Journal
from mos_server.state.records import Round, Upload

CONCEPTS = ("coral", "ginger", "tom")
"""Of the shipped concepts, those of alice, bob and carol."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Three steps, and no drawing in between: tuning takes two seconds.
STEPS = 3
SETTINGS = {"watch_every": "0", "batch": "2"}
TUNING = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
# One context at two steps: a fusion takes seconds.
QUICK = ["steps=2", "contexts=V", "ordinary=a"]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that is made once in a test run, by whichever worker comes first."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            made = folder.with_suffix(".part")
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            made.rename(folder)
    return folder


def tune_all(out: Path, base: Base) -> None:
    """Tune the concepts of alice, bob and carol, each in its own folder."""
    for someone in prepare(out, CONCEPTS):
        request = TuneRequest(
            someone.pictures, someone.concept, someone.class_word, steps=STEPS, settings=SETTINGS, device="cpu"
        )
        tuned_file(Session(someone.state, base.fingerprint, request))


def tuned_people(tuned: Path, out: Path, *, scoring: Collection[str] = PARTICIPANTS) -> list[Participant]:
    """Return alice, bob and carol, who have tuned and have not enrolled, with folders in `out`.

    The pictures of all but those in `scoring` are away: they send their concepts, and no scores.
    Scoring takes longer than all the rest of a client's work in a round.
    """
    people = prepare(out, CONCEPTS)
    for someone in people:
        before = tuned / someone.folder.relative_to(out) / "state" / "concepts"
        shutil.copytree(before, someone.state / "concepts")
        if someone.name not in scoring:
            shutil.rmtree(someone.pictures)
    return people


def create_server(
    folder: Path, people: Sequence[Participant], *, method: str | None = None, sets: Sequence[str] = (), **places: str
) -> None:
    """Make a server's folder on free ports, and a kit for each participant."""
    fleet, mos = map(int, free_ports(2))
    init(folder, fleet_port=fleet, mos_port=mos, method=method, sets=list(sets), **places)
    for someone in people:
        invite(folder, someone.name, someone.kit)


def join_tuned(someone: Participant, *, rounds: int | None = 1) -> list[str | Path]:
    """Return the `mos-client join` whose concept `tune_all` makes."""
    return [*join_command(someone, STEPS, rounds=rounds), *TUNING]


@contextmanager
def processes(**more: str) -> Iterator[Processes]:
    """Yield the processes of a test, of which none is left afterwards."""
    with Processes(ENVIRONMENT | more) as running:
        yield running
    check_nothing_left()


def check_nothing_left() -> None:
    """Check that this process has no children."""
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"processes left behind: {left}"


@dataclass
class Federation:
    """A server and participants, in folders below `out`; nothing runs before it is started."""

    out: Path
    processes: Processes
    participants: list[Participant] = field(default_factory=list)

    def create(self, *, method: str | None = None, sets: Sequence[str] = ()) -> None:
        """Make the server, and a kit for each participant."""
        create_server(self.server, self.participants, method=method, sets=sets)

    @property
    def server(self) -> Path:
        return self.out / "server"

    @property
    def state(self) -> State:
        return open_state(self.server)

    def serve(self) -> None:
        """Start the server."""
        self.processes.start("server", ["mos-server", "serve", self.server])

    def join(self, *people: Participant, rounds: int | None = 1) -> None:
        """Start participants."""
        for someone in people:
            self.processes.start(someone.name, join_tuned(someone, rounds=rounds))

    def ask(self, *flags: str) -> None:
        """Ask for a round, and follow it as "operator"."""
        self.processes.start("operator", ["mos-server", "round", self.server, "--deadline", "20m", *flags])

    def round(self, *flags: str, beside: Sequence[str] = (), timeout_s: float = 400) -> Round:
        """Run a round until it is published, beside the server; return it."""
        self.ask(*flags)
        self.processes.wait("operator", timeout_s=timeout_s, beside=["server", *beside])
        return self.rounds()[-1]

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Open the server's journal."""
        with closing(Journal(self.state.database)) as journal:
            yield journal

    def rounds(self) -> list[Round]:
        with self.journal() as journal:
            return journal.rounds.all()

    def notes(self, name: str = "round-001") -> list[str]:
        with self.journal() as journal:
            return [text for _, _, text in journal.notes.of(name)]

    def uploads(self, name: str = "round-001") -> list[Upload]:
        with self.journal() as journal:
            return journal.uploads.of(name)

    def until(self, what: str, true: Callable[[], object], seconds: float = 300) -> None:
        """Wait until something is true; no process may fail meanwhile."""
        end = time.monotonic() + seconds
        while not true():
            for name, process in self.processes.running.items():
                assert process.poll() in (None, 0), f"{name} ended while we waited for: {what}"
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.2)


def is_ready(someone: Participant) -> bool:
    """Return whether a participant has shown what will leave its machine, and answers now."""
    return (someone.state / "what-leaves.txt").exists()
