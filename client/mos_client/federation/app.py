"""The ClientApp: a request in, a concept or four numbers out.

The server sends data that is checked, never a path or a setting. The participant's own settings
come from its state folder, whose path is in the SuperNode's local node configuration.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mos_client.federation.rekey import current_session
from mos_client.federation.session import Session
from mos_client.federation.tuned import pictures_to_score, tuned_file
from mos_common import messages
from mos_common.errors import BaseModelError, TrustError

if TYPE_CHECKING:
    from mos_common.identity_scores import Identity

log = logging.getLogger(__name__)
app = ClientApp()
STATE = "state"  # the one key of the node configuration


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the concept file, tuned first if it is not cached."""
    from mos_common.concept_file import read_concept

    session, request = _session(context), messages.read_train(message.content)
    started = time.monotonic()
    path = tuned_file(session)
    _check_base(read_concept(path).base_fingerprint, request.base)
    upload = messages.Upload(path.read_bytes(), time.monotonic() - started, session.own)
    log.info("%s: sending %s, %d bytes", request.round, session.request.concept, len(upload.data))
    return Message(messages.upload_content(upload), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Fetch the candidate, draw this concept with it, and answer with four numbers."""
    from mos_client.federation.download import download_model
    from mos_client.federation.enrolment import read_enrolment

    session, request = _session(context), messages.read_evaluate(message.content)
    enrolment = read_enrolment(session.state)
    pictures_to_score(session)  # without them a model would be fetched in vain
    folder = download_model(
        enrolment, request.candidate, session.state / "candidates", manifest_digest=request.candidate_digest
    )
    identity = score(session, folder, session.token(enrolment.participant), request.base)
    log.info("%s: identity %s", request.round, identity)
    shutil.rmtree(folder, ignore_errors=True)  # what is published is fetched as such
    return Message(messages.identity_content(identity), reply_to=message)


def score(session: Session, candidate: Path, token: str, fingerprint: str) -> Identity:
    """Score how well the concept survived in a candidate, on the pictures held back.

    Raises:
        PicturesError: pictures that were tuned on are gone.
        BaseModelError: the base is gone, or is not the one of the round.

    """
    from mos_client.pictures.examples import load_pictures
    from mos_common.base_model import load_base
    from mos_common.concept_file import read_concept
    from mos_common.fused_model import check_base, read_fused
    from mos_common.identity import measure_identity

    request = session.request
    base = load_base(request.base, device=request.device, dtype=request.dtype)
    _check_base(base.fingerprint, fingerprint)
    fused, concept = read_fused(candidate, candidate=True), read_concept(tuned_file(session))
    check_base(fused, base)
    tuned_on, held_back = (load_pictures(paths, base.picture_size) for paths in pictures_to_score(session))
    return measure_identity(base, concept, tuned_on, held_back, fused=fused, fused_token=token)


def _session(context: Any) -> Session:
    state = context.node_config.get(STATE)
    if not isinstance(state, str):
        raise TrustError("this SuperNode was started without its state folder: use mos-client join")
    return current_session(Session.load(Path(state)))


def _check_base(ours: str, theirs: str) -> None:
    if ours != theirs:
        raise BaseModelError(
            f"the round fuses on base model {theirs[:12]}, ours is {ours[:12]}: "
            "join with the base that the operator uses "
            "(float16 and float32 copies of a model agree, a bfloat16 copy is another one)"
        )
