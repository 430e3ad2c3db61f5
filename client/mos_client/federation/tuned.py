"""The concept file of a session: tuned once, then answered from the state folder.

An answer needs the file and nothing else. It is sent when the pictures it was tuned on are gone, or
part of them; only scores need the pictures.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_client.federation.rekey import check_base, rekey_session
from mos_client.federation.remembered import Seen, look_at, recall, remember
from mos_client.federation.session import Session
from mos_client.pictures.folder import Picture, pictures_digest
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.steering import Steering
from mos_common.errors import PicturesError, StateError
from mos_common.outage import Outage

if TYPE_CHECKING:
    from mos_client.tuning.judgement import Judged

log = logging.getLogger(__name__)
OnStep = Callable[[Any], None]
TUNING = threading.Lock()
PICTURES_AWAY = Outage(lambda line: log.warning("%s", line))  # said once, however often the server asks


def tuned_file(
    session: Session,
    on_step: OnStep = lambda step: None,
    begun: threading.Event | None = None,
    judged: Judged | None = None,
) -> Path:
    """Return the concept file, tuned now if it never was; a second caller waits for the first.

    `begun` is set as soon as this call is the one that tunes, so that it can show the progress.
    `judged` is the judgement of this tuning, if it was judged before.

    Raises:
        PicturesError: it was never tuned, and the pictures cannot be read.
        BaseModelError: the participant's base is not the operator's model; nothing is tuned on it.
        MosError: as `tune_folder` raises.

    """
    with TUNING:
        if begun is not None:
            begun.set()
        if judged is None:
            if (path := tuned_already(session)) is not None:
                return path
            session, judged = judged_now(session)
        else:
            session = rekey_session(session, judged.base, _digest(judged))
        from mos_client.tuning.tune_folder import tune_folder

        path = session.named(_digest(judged))
        if not path.is_file():  # else it has just been found under an earlier release's name
            steering = Steering.of(session.state)
            tune_folder(session.request, path, work=session.tuning, judged=judged, on_step=on_step, steering=steering)
        remember(session.state, look_at(session.request.images, _pictures(judged)))
        return path


def judged_now(session: Session) -> tuple[Session, Judged]:
    """Return the session under its base's fingerprint, and the judgement of its tuning.

    Raises:
        BaseModelError: the participant's base is not the operator's model.
        MosError: as `judge` raises.

    """
    from mos_client.tuning.judgement import judge
    from mos_common.base_model import load_base

    request = session.request
    base = load_base(request.base, device=request.device, dtype=request.dtype)
    check_base(session, base)
    judged = judge(request, session.named("to be tuned"), session.tuning, base=base)
    return rekey_session(session, base, _digest(judged)), judged


def _pictures(judged: Judged) -> list[Picture]:
    return [*judged.tuned_on, *judged.held_back]


def _digest(judged: Judged) -> str:
    return pictures_digest(_pictures(judged))


def tuned_already(session: Session, kept: TuneRequest | None = None, *, starting: bool = False) -> Path | None:
    """Return the concept file to answer with, or None if it has to be tuned.

    `kept` is what the state folder was last asked for, by default what it is asked for now. When a
    command is `starting`, a folder from which pictures were taken is one to tune on anew; later it
    is one whose pictures have gone away.

    Raises:
        PicturesError: the pictures cannot be read, and nothing was tuned on them.
        StateError: they cannot be read, and two concept files could be the one of them.

    """
    remembered = recall(session.state)
    seen = remembered if remembered and remembered.folder == str(session.request.images.resolve()) else None
    try:
        now = _seen(session.request)
    except PicturesError as error:
        path = session.named(seen.digest) if seen else None
        if remembered is None:
            path = _only_one(session, kept or session.request)
        if path is None or not path.is_file():
            raise
        PICTURES_AWAY.report(f"{error}: {path} was tuned on them and is sent all the same, without scores")
        return path
    path = session.named(now.digest)
    if path.is_file():
        PICTURES_AWAY.over(f"the pictures in {session.request.images} are back")
        remember(session.state, now)
        return path
    gone = seen.misses_from(now) if seen else []
    if seen and gone and not starting and (path := session.named(seen.digest)).is_file():
        PICTURES_AWAY.report(
            f"{session.request.images} has lost {', '.join(gone[:3])}{', …' if len(gone) > 3 else ''}: {path} was "
            "tuned on them and is sent all the same; start mos-client join again to tune without them"
        )
        return path
    return None


def pictures_to_score(session: Session) -> tuple[list[Picture], list[Picture]]:
    """Return (pictures tuned on, pictures held back), as they were when the concept was tuned.

    Raises:
        PicturesError: some of them are gone. Others would then count as held back, though the
            concept knows them.

    """
    tuned_on, held_back = session.request.pictures()
    seen = recall(session.state)
    if seen is not None and seen.folder == str(session.request.images.resolve()):
        gone = sorted(set(seen.files) - {picture.path.name for picture in (*tuned_on, *held_back)})
        if gone and session.named(seen.digest) == tuned_already(session):
            raise PicturesError(f"{session.request.images} has lost {', '.join(gone[:3])}: bring it back for scores")
    return tuned_on, held_back


def _seen(request: TuneRequest) -> Seen:
    tuned_on, held_back = request.pictures()
    return look_at(request.images, [*tuned_on, *held_back])


def _only_one(session: Session, kept: TuneRequest) -> Path | None:
    """Return the one concept file of a state folder that does not remember its pictures.

    It is that of these settings if the state folder was last asked for them.
    """
    asked = session.request
    # Where things lie and what they are computed on makes no other concept.
    same = replace(asked, base=kept.base, device=kept.device, dtype=kept.dtype, vram=kept.vram)
    if replace(kept, images=kept.images.resolve()) != replace(same, images=asked.images.resolve()):
        return None
    files = sorted((session.state / "concepts").glob(f"{asked.concept.strip('<>')}-*.safetensors"))
    if len(files) > 1:
        raise StateError(
            f"the pictures in {asked.images} cannot be read, and {' and '.join(map(str, files[:3]))} could both be "
            "the concept that was tuned on them: bring the pictures back, or remove the file that is not to be sent"
        )
    return files[0] if files else None
