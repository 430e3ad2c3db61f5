"""Many participants in one process, each with its own key, state folder and concept.

    python -m end_to_end.crowd FOLDER --kill-every 10

`FOLDER/NAME` holds a participant's kit and the state folder that `mos-client join` would use
(`many.py` makes both). Each participant enrols, comes online, sends its concept file, and scores
candidates with the functions of `mos-client`, at most two of them at a time. It ends when it has
downloaded the published model, and the process ends with the last one.

With `--kill-every`, one participant that has not sent its scores is killed every so many seconds,
none of them twice: its connections are cut in the middle of whatever it does, and it begins again
from its folder. `FOLDER/killed.json` has the names.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from flwr.app import Error, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from end_to_end.fleet import FleetClient, honest_answer
from mos_client.federation.download import download_model, wait_for_model
from mos_client.federation.enrolment import read_enrolment
from mos_client.federation.session import Session
from mos_client.federation.tuned import pictures_to_score, tuned_already
from mos_client.pictures.examples import load_pictures
from mos_common import messages
from mos_common.base_model import Base, load_base
from mos_common.concept_file import read_concept
from mos_common.errors import MosError
from mos_common.fused_model import read_fused
from mos_common.identity import probe_for, score_ceiling, score_class_word, score_in, score_single
from mos_common.identity_scores import Identity
from mos_common.round_requests import EvaluateRequest
from mos_common.scores import ImageScorer

SCORING_AT_ONCE = 2
HEARTBEAT_S = 10.0  # the least that Flower takes: whoever is killed counts as online for 20 s more
BACK_AFTER_S = 1.0
REFUSED_PAUSE_S = 2.0  # before another attempt to come online
KILLED = "killed.json"


class KilledError(Exception):
    """This life of a participant is over: nothing more may leave it."""


class Desks:
    """The loaded base models, one for each participant that may score at the same time."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._free: queue.Queue[Base] = queue.Queue()
        for _ in range(SCORING_AT_ONCE):
            self._free.put(load_base("tiny", device="cpu"))

    @contextmanager
    def one(self) -> Iterator[Base]:
        """Wait for a base model, and have it to oneself within the block."""
        base = self._free.get()
        try:
            yield base
        finally:
            self._free.put(base)


class Life:
    """A participant from its start until it is killed. What it knows is in its folder."""

    def __init__(self, folder: Path, desks: Desks, pull_s: float, think_s: float, scored: Callable[[], None]) -> None:
        self.has_question, self.has_model = False, False
        self._folder, self._desks, self._scored = folder, desks, scored
        self._pull_s, self._think_s = pull_s, think_s
        self._dead = threading.Event()
        self._client: FleetClient | None = None
        threading.Thread(target=self._live, daemon=True).start()

    def kill(self) -> None:
        """Cut every connection, without a word to the server."""
        self._dead.set()
        if self._client is not None:
            self._client.close()

    def _live(self) -> None:
        self._client = client = FleetClient(self._folder / "kit.json", self._folder / "state", heartbeat_s=HEARTBEAT_S)
        for beside in (self._beat, self._fetch):
            threading.Thread(target=beside, daemon=True).start()
        while not self._dead.wait(REFUSED_PAUSE_S if client.node is None else self._pull_s):
            # RuntimeError: httpx's word for a client that was closed, as by `kill`.
            with suppress(httpx.HTTPError, RuntimeError, KilledError):
                if client.node is None:
                    client.activate()
                if (question := client.pull()) is not None:
                    self._answer(client, question)

    def _beat(self) -> None:
        while not self._dead.wait(HEARTBEAT_S / 3):
            with suppress(httpx.HTTPError, RuntimeError):
                if self._client is not None and self._client.node is not None:
                    self._client.beat()

    def _fetch(self) -> None:
        """Wait for the published model and download it, as `mos-client join --rounds 1` does."""
        state = self._folder / "state"
        enrolment = read_enrolment(state)
        while not self.has_model and not self._dead.is_set():
            with suppress(MosError):
                if latest := wait_for_model(enrolment, None, self._dead):
                    download_model(enrolment, latest, state / "models")
                    self.has_model = True

    def _answer(self, client: FleetClient, question: Any) -> None:
        self.has_question = True
        asked = client.read(question)
        try:
            content: RecordDict | Error = self._content(question.metadata.message_type, asked)
        except MosError as error:
            print(f"{self._folder.name}: {error}", flush=True)
            content = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__)
        self._check_alive()
        client.push(honest_answer(question, content))
        self.has_question = False
        if question.metadata.message_type == MessageType.EVALUATE and isinstance(content, RecordDict):
            self._scored()

    def _content(self, kind: str, asked: RecordDict) -> RecordDict:
        session = Session.load(self._folder / "state")
        concept = tuned_already(session)
        assert concept is not None  # many.py made it
        if kind == MessageType.TRAIN:
            messages.read_train(asked)
            self._dead.wait(self._think_s)
            return messages.upload_content(messages.Upload(concept.read_bytes(), 0.0))
        return messages.identity_content(self._score(session, concept, messages.read_evaluate(asked)))

    def _score(self, session: Session, concept_file: Path, request: EvaluateRequest) -> Identity:
        """Score the candidate as `mos-client` does; whoever is killed stops between two figures."""
        enrolment = read_enrolment(session.state)
        folder = download_model(
            enrolment, request.candidate, session.state / "candidates", manifest_digest=request.candidate_digest
        )
        token = session.token(enrolment.participant)
        with self._desks.one() as base:
            self._check_alive()
            fused, concept = read_fused(folder, candidate=True), read_concept(concept_file)
            tuned_on, held_back = (load_pictures(paths, base.picture_size) for paths in pictures_to_score(session))
            probe = probe_for(base, concept, held_back, ImageScorer("cpu"), steps=self._desks.steps)
            figures = {
                "class_word": lambda: score_class_word(probe, concept),
                "single": lambda: score_single(probe, concept),
                "fused": lambda: score_in(probe, fused, token),
                "ceiling": lambda: score_ceiling(probe, tuned_on),
            }
            scores = {}
            for name, figure in figures.items():
                self._check_alive()
                scores[name] = figure()
        shutil.rmtree(folder, ignore_errors=True)
        return Identity(**scores)

    def _check_alive(self) -> None:
        if self._dead.is_set():
            raise KilledError


class Crowd:
    """All participants of a folder, and who of them has sent scores or was killed."""

    def __init__(self, folder: Path, desks: Desks, pull_s: float, think_s: float) -> None:
        self.folder = folder
        self.scored: set[str] = set()
        self.killed: list[str] = []
        self._start = lambda name: Life(folder / name, desks, pull_s, think_s, lambda: self.scored.add(name))
        names = sorted(kit.parent.name for kit in folder.glob("*/kit.json"))
        self.lives = {name: self._start(name) for name in names}

    def done(self) -> bool:
        """Return whether everybody has the published model."""
        return all(life.has_model for life in self.lives.values())

    def begun(self) -> bool:
        """Return whether anybody has been asked anything."""
        return bool(self.scored) or any(life.has_question for life in self.lives.values())

    def kill_one(self, choice: random.Random) -> None:
        """Kill one without scores, at best one that has a question, and start it again."""
        left = [name for name in self.lives if name not in self.scored and name not in self.killed]
        if not left:
            return
        name = choice.choice([name for name in left if self.lives[name].has_question] or left)
        doing = "with a question" if self.lives[name].has_question else "between questions"
        self.lives[name].kill()
        self.killed.append(name)
        print(f"killed {name} {doing}", flush=True)
        time.sleep(BACK_AFTER_S)
        self.lives[name] = self._start(name)


def _end_at_once(error: threading.ExceptHookArgs) -> None:
    """End the process: a participant that has silently gone is what a round waits hours for."""
    traceback.print_exception(error.exc_value)
    os._exit(1)


def main() -> None:
    """Run the participants of a folder until they have the published model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds; 0 for nobody")
    parser.add_argument("--kill-at-most", type=int, default=1000, help="participants")
    parser.add_argument("--pull-every", type=float, default=3.0, help="seconds; 3 is a SuperNode's")
    parser.add_argument("--think", type=float, default=0.0, help="seconds from a question to the concept file")
    parser.add_argument("--scoring-steps", type=int, default=20, help="denoising steps of a drawing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    threading.excepthook = _end_at_once
    crowd = Crowd(asked.folder, Desks(asked.scoring_steps), asked.pull_every, asked.think)
    choice = random.Random(0)
    killing_at = float("inf")
    while not crowd.done():
        time.sleep(0.2)
        if asked.kill_every and crowd.begun():
            killing_at = min(killing_at, time.monotonic() + asked.kill_every)
        if time.monotonic() >= killing_at and len(crowd.killed) < asked.kill_at_most:
            crowd.kill_one(choice)
            killing_at += asked.kill_every
    (asked.folder / KILLED).write_text(json.dumps(crowd.killed))


if __name__ == "__main__":
    main()
