"""Fuse concepts outside any round, from files or from a federation's state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError, StateError
from mos_common.fused_model import Excluded, FusedModel, NamedConcept
from mos_common.progress import TextProgress
from mos_server.admission import admit
from mos_server.comparison import unfit_together
from mos_server.fusion.cluster import recorder_for
from mos_server.fusion.fuse import check_concepts, fuse
from mos_server.fusion.settings import FusionSettings
from mos_server.models.own import own_files, with_own, write_own
from mos_server.models.publish import write_fused


def fuse_files(
    files: Sequence[Path],
    out: Path,
    *,
    base: str = "tiny",
    settings: FusionSettings | None = None,
    moments_dir: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    own: bool = False,
    progress: TextProgress = lambda line: None,
) -> FusedModel:
    """Fuse concept files into the folder `out`; with `own`, write each one's own changes beside it.

    Raises:
        StateError: `out` already exists.
        ConceptError, FusionError: a concept cannot be used; the message names the file.

    """
    _check_new(out)
    settings = settings or FusionSettings()
    for file in files:
        read_concept(file)
    loaded = load_base(base, device=device, dtype=dtype)
    concepts = [NamedConcept("", _admitted(file, loaded)) for file in files]
    fused = _fused(loaded, concepts, settings, moments_dir, progress)
    if own:
        fused = _written_own(fused, concepts, loaded, out)
    write_fused(fused, out)
    return fused


def fuse_state(
    state: Path,
    out: Path,
    *,
    round_id: str | None = None,
    only: Sequence[str] = (),
    settings: FusionSettings | None = None,
    device: str | None = None,
    dtype: str | None = None,
    own: bool = False,
    progress: TextProgress = lambda line: None,
) -> FusedModel:
    """Fuse what a federation keeps, or any subset of it, into the folder `out`.

    With `own`, own changes of those whose participants agreed are written beside it.
    `round_id` and `only` choose the concepts. Without `settings`, those of the round or the
    federation are used. Moments that rounds have recorded are not recorded again.

    Raises:
        StateError: there is no state folder, or `out` already exists.
        RequestError: the round is unknown, or a chosen concept is not kept.
        FusionError: no concept is kept.

    """
    from mos_server.state.concepts import kept_uploads, named_concepts
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.state.rekey import rekey_state

    _check_new(out)
    settings = settings or kept_settings(state, round_id, only)
    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        uploads = kept_uploads(journal, round_id, only)
        concepts = named_concepts(opened, uploads)
    loaded = load_base(opened.config.base, device=device, dtype=dtype)
    rekey_state(opened, loaded)
    with opened.artefacts.moments_of([upload.digest for upload in uploads]) as moments:
        fused = _fused(loaded, concepts, settings, moments, progress)
    if own:
        agreed = {upload.token for upload in uploads if upload.own}
        fused = _written_own(fused, [named for named in concepts if named.token in agreed], loaded, out)
    write_fused(fused, out)
    return fused


def kept_settings(state: Path, round_id: str | None = None, only: Sequence[str] = ()) -> FusionSettings:
    """Return the settings of a federation or a round, with weights for only the chosen concepts.

    Raises:
        StateError: there is no state folder.
        RequestError: the round is unknown, a chosen concept is not kept, or a setting is unknown.

    """
    from mos_server.state.concepts import kept_uploads
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        kept = journal.rounds.get(round_id).settings.fusion if round_id else opened.config.fusion
        tokens = {upload.token for upload in kept_uploads(journal, round_id, only)}
    return FusionSettings.from_json(kept).for_tokens(tokens)


def _fused(
    base: Base,
    concepts: Sequence[NamedConcept],
    settings: FusionSettings,
    moments_dir: Path | None,
    progress: TextProgress,
) -> FusedModel:
    check_concepts(concepts, base)
    unfit = {} if settings.keep_all else unfit_together(concepts, base)
    fitting = [named for named in concepts if named.token not in unfit]
    for token, reason in unfit.items():
        progress(f"{token} is left out: {reason}")
    with recorder_for(settings.workers, base) as recorder:
        fused = fuse(
            base,
            fitting,
            settings.of_method,
            weights={token: weight for token, weight in settings.weights.items() if token not in unfit},
            moments_dir=moments_dir,
            recorder=recorder,
            progress=progress,
        )
    excluded = [*(Excluded(token=token, reason=reason) for token, reason in unfit.items()), *fused.manifest.excluded]
    return replace(fused, manifest=fused.manifest.model_copy(update={"excluded": excluded}))


def _written_own(fused: FusedModel, concepts: Sequence[NamedConcept], base: Base, out: Path) -> FusedModel:
    """Write own changes of the fused concepts beside `out`; return the model that names them."""
    inside = {concept.token for concept in fused.manifest.concepts}
    files = {named.token: own_files(named, base) for named in concepts if named.token in inside}
    write_own(out, files)
    return with_own(fused, files)


def _check_new(out: Path) -> None:
    if out.exists():
        raise StateError(f"{out} already exists and a fused model is never changed: choose another --out, or remove it")


def _admitted(file: Path, base: Base) -> Concept:
    try:
        return admit(file.read_bytes(), base)
    except ConceptError as error:
        raise ConceptError(f"{file} cannot be fused: {error}") from error
