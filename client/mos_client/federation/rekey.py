"""Put today's fingerprint of the base into a participant's state folder of an earlier release."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mos_client.federation.remembered import recall
from mos_client.federation.session import SETTINGS, Session
from mos_client.pictures.folder import pictures_digest
from mos_common.errors import BaseModelError, PicturesError
from mos_common.trust import KIT

if TYPE_CHECKING:
    from mos_common.base_model import Base


def current_session(session: Session) -> Session:
    """Return the session under today's fingerprint; its base is loaded only if it has an old one.

    Raises:
        BaseModelError: the participant's base is not the operator's model.

    """
    from mos_common.fingerprint import is_legacy

    if not is_legacy(session.fingerprint):
        return session
    from mos_common.base_model import load_base

    request = session.request
    return rekey_session(session, load_base(request.base, device=request.device, dtype=request.dtype))


def rekey_session(session: Session, base: Base, pictures: str | None = None) -> Session:
    """Put the fingerprint of `base` into the session, its settings, kit and concept file.

    A concept that was tuned is found again under its new name, and its tensors stay as they are.
    `pictures` is the digest of its pictures where the caller has it already.

    Raises:
        BaseModelError: `base` is not the operator's model.

    """
    from mos_client.tuning.tune_folder import progress_picture, progress_scores
    from mos_common.concept_file import rekey_concept
    from mos_common.kit import read_kit, write_kit

    check_base(session, base)
    rekeyed = replace(session, fingerprint=base.fingerprint)
    pictures = pictures or _pictures_of(session)
    if pictures is None:
        for file in (session.state / "concepts").glob("*.safetensors"):
            rekey_concept(file, base)  # it keeps its name, since nobody knows what it was tuned on
    else:
        kept, path = replace(session, fingerprint=base.legacy_fingerprint).named(pictures), rekeyed.named(pictures)
        if kept.is_file() and not path.is_file():
            rekey_concept(kept, base)
            kept.rename(path)
            for beside in (progress_picture, progress_scores):
                if beside(kept).is_file():
                    beside(kept).rename(beside(path))
    if (session.state / SETTINGS).is_file() and rekeyed != session:
        rekeyed.save()
    kit_file = session.state / KIT
    if kit_file.is_file() and (kit := read_kit(kit_file)).base == base.legacy_fingerprint:
        write_kit(kit.model_copy(update={"base": base.fingerprint}), kit_file)
    return rekeyed


def check_base(session: Session, base: Base) -> None:
    """Check that `base` is the model that the session's federation fuses on.

    Raises:
        BaseModelError: it is another one.

    """
    from mos_common.fingerprint import is_base, why_not

    if not is_base(session.fingerprint, base):
        raise BaseModelError(
            f"{session.request.base} is base model {base.fingerprint[:12]}, "
            f"this federation fuses on {session.fingerprint[:12]}{why_not(session.fingerprint, base)}: "
            "join with the model that the operator uses (--base)"
        )


def _pictures_of(session: Session) -> str | None:
    """Return the digest of the pictures, as they are or as they were; None if neither is known."""
    try:
        tuned_on, held_back = session.request.pictures()
        return pictures_digest([*tuned_on, *held_back])
    except PicturesError:
        seen = recall(session.state)
        return seen.digest if seen else None
