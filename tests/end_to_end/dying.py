"""A federation of two whose processes die where a test says, and are started again.

Everything up to the round is done once (`warm`). Each case runs in the same folder on the same
ports, on a fresh copy of it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from end_to_end.federation import ENVIRONMENT, QUICK, create_server, join_tuned, tuned_people
from mos_bench.demo import free_ports, latest_model
from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import Round

KILLED = -9
FAULTS = Path(__file__).parent / "faults"
ROUND = ["--wait", "2", "--deadline", "20m", *(word for each in QUICK for word in ("--set", each))]


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the n-th call of a function, in the processes whose command line has `process`."""

    target: str
    process: str
    number: int = 1
    when: str = "before"

    def __str__(self) -> str:
        return f"{self.target}:{self.number}:{self.when}:{self.process}"


@dataclass
class Dying:
    """The folders of a server, alice and bob; `live` is where they run."""

    root: Path
    participants: list[Participant] = field(default_factory=list)
    # Empties what the server keeps outside its folder, and returns the flags of `init` for that.
    elsewhere: Callable[[], dict[str, str]] = dict

    @property
    def live(self) -> Path:
        return self.root / "live"

    @property
    def server(self) -> Path:
        return self.live / "server"

    def environment(self, *kills: Kill, **more: str) -> dict[str, str]:
        """What the processes of a case get: their faults, and no network."""
        once = self.root / "once"
        shutil.rmtree(once, ignore_errors=True)
        once.mkdir()
        return {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "MOS_TEST_KILLS": ";".join(map(str, kills)),
            "MOS_TEST_ONCE": str(once),
            **more,
        }

    def happened(self) -> int:
        """How many faults have happened in this case."""
        return len(list((self.root / "once").iterdir()))

    def create(self, tuned: Path) -> None:
        """Make participants with the concepts in `tuned`; nobody is invited yet."""
        self.participants = tuned_people(tuned, self.live)[:2]

    def invite(self, processes: Processes) -> None:
        """Make the server and a kit for each; what is killed is run again."""
        fleet, mos = free_ports(2)
        init = ["mos-server", "init", self.server, "--fleet-port", fleet, "--mos-port", mos]
        again(processes, "operator", init)
        for someone in self.participants:
            again(processes, "operator", ["mos-server", "invite", self.server, someone.name, "--out", someone.kit])

    def keep(self) -> None:
        """Keep the folders as they are, for later cases."""
        shutil.copytree(self.live, self.root / "warm", symlinks=True)

    def fresh(self) -> None:
        """Begin a case: the folders as they were kept; what is kept elsewhere is made anew."""
        shutil.rmtree(self.live, ignore_errors=True)
        shutil.copytree(self.root / "warm", self.live, symlinks=True)
        if places := self.elsewhere():
            shutil.rmtree(self.server)
            for someone in self.participants:
                someone.kit.unlink()
            create_server(self.server, self.participants, **places)

    def start(self, processes: Processes, *, joining: bool = True) -> None:
        """Start the server and the participants."""
        processes.start("server", ["mos-server", "serve", self.server])
        for someone in self.participants if joining else ():
            processes.start(someone.name, join_tuned(someone))

    def ask(self, processes: Processes, *flags: str) -> None:
        """Ask for the round, and follow it; of a flag that is given twice the last one counts."""
        processes.start("operator", ["mos-server", "round", self.server, *ROUND, *flags])

    def until(self, processes: Processes, true: Callable[[], object], seconds: float = 1800) -> None:
        """Start again what is killed, until something is true."""
        end = time.monotonic() + seconds
        while not true():
            for name, process in list(processes.running.items()):
                if (code := process.poll()) == KILLED:
                    self.again(processes, name)
                else:
                    assert code in (None, 0), f"{name} ended with {code}"
            assert time.monotonic() < end, f"not within {seconds:.0f} s"
            time.sleep(0.2)

    def again(self, processes: Processes, name: str) -> None:
        """Start what was killed, as its owner would."""
        if name == "server":
            self.start(processes, joining=False)
        elif name == "operator":
            self.ask(processes)
        else:
            someone = next(each for each in self.participants if each.name == name)
            processes.start(name, join_tuned(someone))

    def finish(self, processes: Processes) -> None:
        """Wait until the round is published and everybody has its model, and stop the server."""
        names = ["operator", *(someone.name for someone in self.participants)]
        self.until(processes, lambda: all(processes.running[name].poll() == 0 for name in names))
        processes.stop("server")

    def run(self, *kills: Kill, **more: str) -> bytes:
        """Run the round on a fresh copy and return the manifest that was published."""
        self.fresh()
        with Processes(self.environment(*kills, **more)) as processes:
            self.start(processes)
            self.ask(processes)
            self.finish(processes)
        return self.published()

    def published(self) -> bytes:
        """The manifest of the published model, which everybody has."""
        manifest = (self.server / "models" / "round-001" / "manifest.json").read_bytes()
        for someone in self.participants:
            assert (latest_model(someone.state) / "manifest.json").read_bytes() == manifest
        assert self.round().status == "published"
        return manifest

    def round(self) -> Round:
        with closing(Journal(open_state(self.server).database)) as journal:
            return journal.rounds.get("round-001")

    def stands(self) -> str:
        """The status of the round, or nothing while it is not asked for."""
        with closing(Journal(open_state(self.server).database)) as journal:
            return next((each.status for each in journal.rounds.all()), "")

    def notes(self) -> list[str]:
        with closing(Journal(open_state(self.server).database)) as journal:
            return [text for _, _, text in journal.notes.of("round-001")]


def warm(
    root: Path,
    tuned: Path,
    invited: Callable[[Dying], None] = lambda dying: None,
    elsewhere: Callable[[], dict[str, str]] = dict,
) -> Dying:
    """A federation in which both have tuned (see `create`) and no round was asked for.

    `invited` is called when the kits are there and nobody has joined.
    """
    dying = Dying(root, elsewhere=elsewhere)
    dying.create(tuned)
    create_server(dying.server, dying.participants)
    invited(dying)
    dying.keep()
    return dying


def again(processes: Processes, name: str, command: Sequence[str | Path]) -> None:
    """Run a command to its end, once more if it was killed."""
    for _ in range(3):
        processes.start(name, command)
        if (code := processes.running[name].wait(300)) != KILLED:
            break
    assert code == 0, f"{command} ended with {code}"
