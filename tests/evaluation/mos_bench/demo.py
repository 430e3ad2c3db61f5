"""`make demo`: the product on a small scale, with three participants and one round.

Every stage is a command that a person would type, run as a process of its own. Keys, kits, states
and picture folders are separate, and the processes talk over TLS on loopback. Only the report at
the end sees all sides.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_bench.showcase import draw_command
from mos_client.federation.session import Session
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.own.names import SUFFIX, beside
from mos_common.shell import say
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_tiny import demo_concepts, demo_sketch

PARTICIPANTS = ("alice", "bob", "carol")
CONCEPTS = ("sunny", "rex", "tom")
"""Of the shipped concepts, those of the participants."""
SOLVED = " layers solved in "


@dataclass
class Clock:
    """The wall time of each stage in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and print its name at the start."""
        say(f"── {name}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def run_demo(out: Path, *, steps: int | None = None) -> None:
    """Run the demo into `out`, and print the files, the sizes, the scores and the times.

    Raises:
        RequestError: `out` holds something that is no earlier demo, which would be erased.

    """
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / "participants" / PARTICIPANTS[0]).is_dir():
        raise RequestError(
            f"{out} holds files of something else, which would be deleted: give --out a new folder, or an "
            "earlier demo's"
        )
    shutil.rmtree(out, ignore_errors=True)
    participants = prepare(out)
    state, clock = out / "server", Clock()
    with Processes({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}) as processes:
        with clock.stage("set up the server and invite"):
            fleet, mos = free_ports(2)
            processes.do(
                "operator",
                [
                    *("mos-server", "init", state, "--host", "127.0.0.1", "--publish", "own"),
                    *("--fleet-port", fleet, "--mos-port", mos),
                ],
            )
            for participant in participants:
                processes.do("operator", ["mos-server", "invite", state, participant.name, "--out", participant.kit])
        with clock.stage("the round, from joining to downloaded models"):
            processes.start("server", ["mos-server", "serve", state], {"OMP_NUM_THREADS": "2"})
            for participant in participants:
                processes.start(participant.name, join_command(participant, steps))
            names = [participant.name for participant in participants]
            processes.start(
                "operator", ["mos-server", "round", state, "--wait", str(len(participants)), "--deadline", "2h"]
            )
            processes.wait("operator", beside=["server", *names])
            for name in names:
                processes.wait(name, timeout_s=120, beside=["server"])
            first, downloaded = participants[0], out / "downloaded"
            fetch: list[str | Path] = ["mos-client", "download", first.kit, "--state", first.state, "--own"]
            processes.do(first.name, [*fetch, "--out", downloaded])
            processes.stop("server")
        model = downloaded / latest_model(first.state).name
        beside(model).rename(out / f"fused{SUFFIX}")
        model.rename(out / "fused")
        downloaded.rmdir()
        shutil.copyfile(demo_sketch(), out / "sketch.png")
        left, right = participants[-1], first
        with clock.stage("draw two people in one picture, at four seeds"):
            processes.do("drawing", draw_command(out, left, right), {"OMP_NUM_THREADS": "2"})
        with clock.stage("report"):
            from mos_bench.report import report_of, show

            report = report_of(out, state, participants, (left, right), clock.seconds)
    report["seconds"] = clock.seconds | round_seconds(state)
    write_atomically(out / "report.json", json.dumps(report, indent=2).encode() + b"\n")
    show(out, report)


def round_seconds(state: Path) -> dict[str, float]:
    """Return the seconds that each step of the round took, from the server's journal."""
    with closing(Journal(open_state(state).database)) as journal:
        (round_,) = journal.rounds.all()
        uploaded = max(upload.received for upload in journal.uploads.of(round_.id))
        solved = max(at for _, at, text in journal.notes.of(round_.id) if SOLVED in text)
    steps = {"tune and upload": round_.asked, "fuse": uploaded, "score and publish": solved}
    ends = [uploaded, solved, round_.ended or solved]
    return {f"of it: {name}": round(end - began, 1) for (name, began), end in zip(steps.items(), ends, strict=True)}


def prepare(out: Path, concepts: Sequence[str] = CONCEPTS) -> list[Participant]:
    """Give each participant a private folder with the pictures of one of the shipped concepts."""
    participants = []
    for name, concept in zip(PARTICIPANTS, concepts, strict=True):
        source = demo_concepts() / concept
        about = json.loads((source / "concept.json").read_text(encoding="utf-8"))
        participant = Participant(name, about["name"], about["class"], out / "participants" / name)
        shutil.copytree(source, participant.pictures)
        participants.append(participant)
    return participants


def join_command(participant: Participant, steps: int | None, *, rounds: int | None = 1) -> list[str | Path]:
    """Return `mos-client join` as this participant would type it; `rounds` may have no end."""
    command: list[str | Path] = ["mos-client", "join", participant.kit, participant.pictures]
    command += ["--concept", participant.concept, "--class", participant.class_word]
    command += ["--state", participant.state]
    command += ["--rounds", str(rounds)] if rounds else []
    return command + (["--steps", str(steps)] if steps else [])


def latest_model(state: Path) -> Path:
    """Return the one model that a participant of one round has downloaded."""
    (model,) = (folder for folder in Session.load(state).models.iterdir() if (folder / "manifest.json").is_file())
    return model


def free_ports(count: int) -> list[str]:
    """Return unused ports of the loopback interface."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports
