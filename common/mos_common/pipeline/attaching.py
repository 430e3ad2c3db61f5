"""Attach a model to the base for one drawing: what its prompts name decides what acts."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.own.attach import OwnChanges, attached_with_own
from mos_common.own.folder import read_own
from mos_common.own.names import own_folder
from mos_common.pipeline.models import Opened
from mos_common.written_prompts import concepts_named

log = logging.getLogger(__name__)


def is_named_in(prompt: str, opened: Opened, base: Base) -> bool:
    """Return whether a prompt names a concept of a model.

    Raises:
        RequestError: it names an unknown one.

    """
    by_text = opened.called and re.search(rf"(?<!\w){re.escape(opened.called)}(?!\w)", prompt, re.IGNORECASE)
    return bool(concepts_named(base, prompt, opened.vocabulary)) or bool(by_text)


@contextmanager
def attached_model(opened: Opened, base: Base, prompts: Sequence[str]) -> Iterator[OwnChanges]:
    """Attach a model to the base, with its own changes beside; if no concept is named, nothing.

    `prompts` are all that are drawn or drawn away from. So a picture without a concept is the
    base's, to the bit.

    Raises:
        RequestError: a prompt names an unknown concept.

    """
    named_in = [prompt for prompt in prompts if is_named_in(prompt, opened, base)]
    changes, own = (opened.changes, opened.own) if named_in else ({}, {})
    with attached_with_own(base, changes, own, opened.kept) as attached:
        yield attached


def with_own_named(opened: Opened, model: Path, base: Base, prompts: Sequence[str], kit: Path | None = None) -> Opened:
    """Return a model with the own changes, beside it, of the concepts that some prompts name.

    Those that it has already are not read again.

    Raises:
        ConceptError, TrustError: they do not fit, are damaged, or are not what the model names.

    """
    if opened.manifest is None:
        return opened
    named = {token for prompt in prompts for token in concepts_named(base, prompt, opened.vocabulary)}
    published = {concept.token for concept in opened.manifest.concepts if concept.own} & named
    for token in sorted(published):
        if token not in opened.own and not own_folder(model, token).exists():
            log.info(
                "the own changes of %s are not here: the fused model draws it (download --own fetches them)", token
            )
    kept = {token: changes for token, changes in opened.own.items() if token in published}
    return replace(opened, own=kept | read_own(model, opened.manifest, base, published - kept.keys(), kit))


def with_own_of(tokens: Collection[str], opened: Opened, model: Path, base: Base, kit: Path | None = None) -> Opened:
    """Return a model with the own changes of just these concepts, as a recipe names them.

    Raises:
        RequestError: they are not here.
        ConceptError, TrustError: as `with_own_named`.

    """
    own = read_own(model, opened.manifest, base, tokens, kit) if opened.manifest and tokens else {}
    if missing := sorted(set(tokens) - own.keys()):
        raise RequestError(
            f"the picture was drawn with the own changes of {missing[0]}, which are not beside {model}: fetch them "
            "with mos-client download KIT --own"
        )
    return replace(opened, own=own)
