"""Update a state folder of an earlier release to the current fingerprint of its base."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from mos_common.errors import BaseModelError, ConceptError
from mos_server.state.folder import State, keep_fingerprint

if TYPE_CHECKING:
    from mos_common.base_model import Base

log = logging.getLogger(__name__)


def rekey_state(state: State, base: Base) -> State:
    """Return the state with the current fingerprint of `base`.

    The config and the kept concepts are rewritten where they have the old fingerprint. Published
    models keep the one they were signed with; it is recognised there.

    Raises:
        BaseModelError: `base` is not the base model that the state was made for.

    """
    from mos_common.concept_file import rekey_concept
    from mos_common.fingerprint import is_base, why_not

    expected = state.config.base_fingerprint
    if not is_base(expected, base):
        raise BaseModelError(
            f"the base model is {base.fingerprint[:12]} now and was {expected[:12]} when this server was made"
            f"{why_not(expected, base)}: put that one back, or make a new server with mos-server init"
        )
    if expected == base.fingerprint:
        return state
    for digest in state.artefacts.concepts():
        try:
            state.artefacts.rewrite_concept(digest, partial(rekey_concept, base=base, mode=0o600))
        except ConceptError as error:
            log.warning("%s keeps its old fingerprint: %s", state.artefacts.place_of_concept(digest), error)
    # Last, so that an interrupted update is run again.
    return keep_fingerprint(state, base.fingerprint)
