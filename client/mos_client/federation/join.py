"""Take part in rounds: enrol, tune, answer the server's requests, fetch what it publishes."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mos_client.federation.activity import JOINED, reported
from mos_client.federation.consent import await_consent
from mos_client.federation.download import download_model, greet, wait_for_model
from mos_client.federation.enrolment import enrol
from mos_client.federation.following import Follower
from mos_client.federation.leaving import say_what_leaves
from mos_client.federation.pinning import check_kit
from mos_client.federation.rekey import current_session
from mos_client.federation.remembered import check_same_concept, check_same_pictures
from mos_client.federation.session import SETTINGS, Session, locked
from mos_client.federation.supernode import SuperNode
from mos_client.federation.tuned import OnStep, judged_now, tuned_already, tuned_file
from mos_client.tuning.steering import Steering, Wanted
from mos_common.commands import draw_command
from mos_common.errors import NetworkError, StateError
from mos_common.files import write_atomically
from mos_common.kit import Kit
from mos_common.model_files import parse_manifest, read_manifest
from mos_common.outage import Outage
from mos_common.own.names import own_digests
from mos_common.shell import INTERRUPTED

if TYPE_CHECKING:
    from mos_client.tuning.judgement import Judged
    from mos_client.tuning.request import TuneRequest

log = logging.getLogger(__name__)
Say = Callable[[str], None]
RETRY_S = 10.0


def join(
    session: Session,
    kit: Kit,
    *,
    rounds: int | None,
    say: Say,
    on_step: OnStep,
    anew: bool = False,
    tune_only: bool = False,
    ask: bool = False,
) -> None:
    """Serve round after round until interrupted, or until `rounds` models were downloaded.

    Everything that can be judged without the network is judged before the kit is used. `anew` tunes
    what the session says, though the state folder remembers another concept or other pictures.
    `tune_only` ends when the concept is tuned: the server is not called. With `ask` no concept file
    is sent before there is a yes to it (`consent.py`).

    Raises:
        MosError: with what to do.

    """
    check_kit(kit, session.state)
    with locked(session.state), _terminated_is_interrupted(), reported(session.state) as report:
        say, on_step = report.saying(say), report.stepping(on_step)
        Steering.of(session.state).want(Wanted.RUN)
        session, judged = prepared(session, anew=anew)
        if tune_only:
            session.save()
            announce(session, tuned_file(session, on_step, judged=judged), say)
            say("nothing has been sent, and the server was not called; the same command without --tune-only joins")
            return
        for line in say_what_leaves(publishes_own=kit.publishes == "own", agreed=session.own):
            say(line)
        enrolment = enrol(kit, session.state, say)
        greet(enrolment, say)
        say(f"enrolled as {enrolment.participant}; the key is {session.node_key}")
        session.save()
        begun, announced = threading.Event(), threading.Event()
        follower = Follower(enrolment, session.state, say)
        with follower.running(), _answering(session, follower, begun, announced, say, ask=ask):
            announce(session, tuned_file(session, on_step, begun, judged), say)
            report.stage(JOINED)
            announced.set()
            serve(session, follower, rounds, say)


def prepared(session: Session, *, anew: bool = False) -> tuple[Session, Judged | None]:
    """Return the session under today's fingerprint, and the judgement of its tuning if one is due.

    Nothing is written where the session and what the state folder remembers disagree.

    Raises:
        RequestError: the state folder is for another concept or other pictures.
        MosError: as `judge` raises.

    """
    kept = None if anew else _last_asked(session.state)
    if kept is not None:
        check_same_concept(session.request, kept, session.state)
    session = current_session(session)
    if tuned_already(session, kept, starting=True) is not None:
        return session, None
    if kept is not None:
        check_same_pictures(session.request, kept, session.state)
    return judged_now(session)


def _last_asked(state: Path) -> TuneRequest | None:
    """Return what `join` was last asked for on a state folder; None if nobody can say."""
    try:
        return Session.load(state).request if (state / SETTINGS).is_file() else None
    except StateError:  # damaged: it is written anew
        return None


def announce(session: Session, concept: Path, say: Say) -> None:
    """List the tensors that will leave this machine; `what-leaves.txt` has their full names."""
    from mos_client.inspection.describe import describe_briefly
    from mos_common.concept_file import read_concept

    listed = f"listed in {_listing(session)}"
    try:
        write_atomically(_listing(session), _described(concept))
    except StateError as error:  # it is shown all the same, and an answer needs no more
        listed = f"shown by mos-client inspect {concept} ({error})"
    say(f"the concept file that will leave this machine, when the server asks, is {concept}:")
    for line in describe_briefly(read_concept(concept)):
        say(line)
    say(f"no pictures, no captions; every tensor by its full name is {listed}")


def announce_news(session: Session, say: Say) -> None:
    """Announce the concept file again if it was tuned anew, because the pictures have changed."""
    concept = tuned_already(session)
    if concept is not None and _announced(session) != _described(concept):
        announce(session, concept, say)


def _announced(session: Session) -> bytes:
    try:
        return _listing(session).read_bytes()
    except OSError:
        return b""


def _listing(session: Session) -> Path:
    return session.state / "what-leaves.txt"


def _described(concept: Path) -> bytes:
    from mos_client.inspection.describe import describe

    return "\n".join(describe(concept)).encode() + b"\n"


def serve(session: Session, follower: Follower, rounds: int | None, say: Say) -> None:
    """Wait for published models and fetch each, as the keys of today allow."""
    stop = threading.Event()
    away = Outage(lambda line: log.warning("%s", line))
    downloaded, newest = 0, _newest(session)
    say("waiting for requests of the server; Ctrl-C stops, and nothing is lost")
    while rounds is None or downloaded < rounds:
        follower.changed.clear()
        latest = wait_for_model(follower.enrolment, newest, follower.changed)
        if latest is None:
            continue  # keys or addresses have changed
        try:
            enrolment = follower.look()  # it may be signed by a key of which this participant has not heard
            folder = download_model(enrolment, latest, session.models)
        except (NetworkError, StateError) as error:  # a full disk does not end the answers
            away.report(f"{latest} is published and cannot be fetched yet: {error}; trying again every {RETRY_S:.0f} s")
            stop.wait(RETRY_S)
            continue
        away.over(f"{latest} could be fetched")
        downloaded, newest = downloaded + 1, latest
        token = session.token(enrolment.participant)
        say(f"{latest} is published, downloaded and verified: {folder}")
        if token in _tokens(folder):
            say(f"draw with it: {draw_command(folder, f'{token} on the beach', session.request.base)}")
            if own := sorted(own_digests(parse_manifest(folder, read_manifest(folder)))):
                say(
                    f"own changes of {', '.join(own)} are published beside it: mos-client download KIT --own fetches them"
                )
        else:
            say(
                f"{token} is not in it: mos-server status tells the operator why; it takes part again in the next round"
            )


def withheld_until(
    announced: threading.Event, stop: threading.Event, app: Callable[..., Any], before_reply: Callable[[Any], None]
) -> Callable[..., Any]:
    """Wrap the app so that no reply is sent before the participant has been shown what it contains.

    `before_reply` is called with every reply, since a tuning may end at the same moment.
    """

    def reply(**request: Any) -> Any:
        answer = app(**request)
        while not announced.wait(0.1):
            if stop.is_set():
                raise NetworkError("interrupted before you were shown what leaves this machine: nothing left it")
        before_reply(answer)
        return answer

    return reply


@contextmanager
def _answering(
    session: Session, follower: Follower, begun: threading.Event, announced: threading.Event, say: Say, *, ask: bool
) -> Iterator[None]:
    """Run the SuperNode, and its tasks in a thread of this process, within the block."""
    from mos_client.federation.app import STATE, app
    from mos_client.federation.executor import Executor

    certificate, kit = session.state / "ca.crt", follower.enrolment.kit
    write_atomically(certificate, kit.ca.encode())
    node_config = f"{STATE}={json.dumps(str(session.state.resolve()))}"
    node = SuperNode(kit.fleet, certificate, session.node_key, session.state / "flower", node_config)
    stop = threading.Event()

    def ready() -> bool:
        node.connect_to(follower.enrolment.kit.fleet, follower.enrolment.kit.ca)
        # Tasks wait until this process tunes and shows its progress.
        return node.look_after() and begun.is_set()

    def before_reply(reply: Any) -> None:
        announce_news(session, say)
        if ask:
            await_consent(session, reply, stop, say)

    withheld = withheld_until(announced, stop, app, before_reply)
    worker = threading.Thread(
        target=Executor(lambda: node.address, node.secret_file, withheld).run,
        args=(stop, ready),
        name="executor",
        daemon=True,
    )
    worker.start()
    try:
        yield
    except KeyboardInterrupt:
        stop.set()
        node.stop()
        say("interrupted: run the same command to resume")
        worker.join(1.0)
        if worker.is_alive():  # in torch, which aborts if the interpreter shuts down under it
            os._exit(INTERRUPTED)
        raise
    finally:
        stop.set()
        node.stop()
        worker.join(3.0)


def _tokens(model: Path) -> set[str]:
    """Return the names of the concepts in a verified model."""
    concepts = parse_manifest(model, read_manifest(model)).get("concepts")
    return (
        {str(each.get("token")) for each in concepts if isinstance(each, dict)} if isinstance(concepts, list) else set()
    )


def _newest(session: Session) -> str | None:
    """Return the newest model that was downloaded before, so that it is not fetched again."""
    names = [folder.name for folder in session.models.glob("round-*") if folder.is_dir() and "." not in folder.name]
    return max(names, key=lambda name: (len(name), name), default=None)


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
