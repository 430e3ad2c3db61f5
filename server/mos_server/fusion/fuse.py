"""Fuse concepts into one model by any method, and record in its manifest what it is made of.

Everything is summed in the order of the content digests: a set of concepts gives the same model, to
the bit, whenever and in whatever order its members arrived.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from mos_common.base_model import Base
from mos_common.base_names import short_name
from mos_common.concept import check_fits, words_of
from mos_common.concept_file import content_digest
from mos_common.errors import FusionError
from mos_common.fused_model import Excluded, FusedConcept, FusedModel, Manifest, NamedConcept
from mos_common.progress import TextProgress
from mos_server.fusion.methods import check_honoured, method_named
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.methods.method import MethodSettings, Option, Solved, settings_in_manifest
from mos_server.fusion.ordinary_folder import ordinary_folder
from mos_server.fusion.statistics import Recorder, Statistics, UnusableConceptError
from mos_server.tracing import span

log = logging.getLogger(__name__)


def fuse(
    base: Base,
    concepts: Sequence[NamedConcept],
    settings: MethodSettings | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    moments_dir: Path | None = None,
    recorder: Recorder | None = None,
    progress: TextProgress = log.info,
) -> FusedModel:
    """Fuse concepts into one model that draws all of them.

    The type of `settings` chooses the method (`methods/`); without settings it is gradient fusion
    with its defaults. `weights` by token say how much a concept counts (wi, default 1). Second
    moments are kept in `moments_dir` by content digest, base and settings, where later fusions find
    them: only a concept that joins is recorded, and an interrupted fusion resumes. Without
    `moments_dir` they last as long as the call, except those of ordinary prompts
    (`ordinary_folder.py`). `recorder` runs the models elsewhere (`cluster.py`). A concept whose
    forward pass is not finite, or that ruins others (`leaving_out.py`), is left out, and the
    manifest says why.

    Raises:
        FusionError: there is nothing to fuse, two concepts would share a token, or a weight is for
            an unknown token or not positive.
        UndecidedError: concepts only ruin each other.
        RequestError: the method does not honour weights, and some are not 1.
        ConceptError: a concept does not fit the base.

    """
    settings = settings or GradientSettings()
    check_concepts(concepts, base)
    _report_shared_triggers(concepts)
    remaining, excluded = _in_canonical_order(concepts), list[Excluded]()
    weights, method = _checked_weights(weights or {}, remaining), method_named(settings.method)
    if any(weight != 1 for weight in weights.values()):
        check_honoured(settings.method, [Option.WEIGHTS])
    with ExitStack() as stack:
        stack.enter_context(span("fusion", method=settings.method, concepts=len(concepts)))
        ordinary = None
        if moments_dir is None:
            moments_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mos-moments-")))
            ordinary = ordinary_folder()
        statistics = Statistics(base, moments_dir, progress, recorder, ordinary)
        while True:
            try:
                solved = method.merge(base, remaining, weights, settings, statistics)
                break
            except UnusableConceptError as error:
                remaining = [named for named in remaining if named.token != error.token]
                if not remaining or len(remaining) + len(excluded) == len(concepts):
                    raise
                excluded.append(Excluded(token=error.token, reason=error.reason))
                progress(f"{error.token} is left out: {error.reason}")
    vocabulary = {named.token: words_of(named.concept, base) for named in remaining}
    return FusedModel(solved.changes, vocabulary, _manifest(base, remaining, weights, settings, solved, excluded))


def check_concepts(concepts: Sequence[NamedConcept], base: Base) -> None:
    """Check that concepts can be fused into one model.

    Raises:
        FusionError: there are none, or two would share a token.
        ConceptError: a concept does not fit the base.

    """
    if not concepts:
        raise FusionError("no concepts to fuse: at least one is needed")
    tokens = [named.token for named in concepts]
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise FusionError(
            f"two concepts are called {', '.join(twice)}: a prompt could not tell them apart. "
            "Rename one, or leave it out"
        )
    for named in concepts:
        check_fits(named.concept, base)


def _in_canonical_order(concepts: Sequence[NamedConcept]) -> list[NamedConcept]:
    """Sort by content digest, so that sums are the same to the bit in any order of arrival."""
    return sorted(concepts, key=lambda named: (content_digest(named.concept), named.token))


def _report_shared_triggers(concepts: Sequence[NamedConcept]) -> None:
    """Warn about concepts without words of their own that prompts could not tell apart."""
    called: dict[str, list[str]] = {}
    for named in concepts:
        if not named.concept.words:
            text = named.concept.trigger or named.concept.class_word
            called.setdefault(" ".join(text.lower().split()), []).append(named.token)  # as CLIP reads it
    for trigger, tokens in called.items():
        if len(tokens) > 1:
            log.warning(
                "%s are all called %r in prompts and will be drawn as a mixture: import them with different --trigger",
                ", ".join(tokens),
                trigger,
            )


def _checked_weights(weights: Mapping[str, float], concepts: Sequence[NamedConcept]) -> dict[str, float]:
    tokens = {named.token for named in concepts}
    if unknown := weights.keys() - tokens:
        raise FusionError(
            f"a weight is given for {min(unknown)}, which is not fused here; known: {', '.join(sorted(tokens))}"
        )
    if wrong := [token for token, weight in weights.items() if not 0 < weight < 1e6]:
        raise FusionError(f"the weight of {wrong[0]} is {weights[wrong[0]]}: expected a number above 0")
    return {token: float(weights.get(token, 1.0)) for token in sorted(tokens)}


def _manifest(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: MethodSettings,
    solved: Solved,
    excluded: Sequence[Excluded],
) -> Manifest:
    return Manifest(
        base=base.fingerprint,
        base_name=short_name(base.name),
        method=settings.method,
        settings=settings_in_manifest(settings),
        versions={name: version(name) for name in ("federated-mix-of-show", "torch", "diffusers", "transformers")},
        concepts=[
            FusedConcept(
                token=named.token,
                participant=named.participant,
                name=named.concept.name,
                class_word=named.concept.class_word,
                digest=content_digest(named.concept),
                licence=named.concept.licence,
                author=named.concept.author,
                weight=weights[named.token],
                survival=solved.survival.get(named.token, {}),
            )
            for named in concepts
        ],
        excluded=list(excluded),
        drift=solved.drift,
        influence={group: influence.table() for group, influence in solved.influence.items()},
    )
