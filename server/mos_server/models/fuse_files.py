"""Fuse concepts outside any round, from files or from a federation's state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError, StateError
from mos_common.fused_model import FusedModel, NamedConcept
from mos_common.progress import TextProgress
from mos_server.admission import admit
from mos_server.fusion.cluster import recorder_for
from mos_server.fusion.fuse import fuse
from mos_server.fusion.settings import FusionSettings
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
    progress: TextProgress = lambda line: None,
) -> FusedModel:
    """Fuse concept files into the folder `out`.

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
    progress: TextProgress = lambda line: None,
) -> FusedModel:
    """Fuse what a federation keeps, or any subset of it, into the folder `out`.

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
        concepts = named_concepts(opened, kept_uploads(journal, round_id, only))
    loaded = load_base(opened.config.base, device=device, dtype=dtype)
    rekey_state(opened, loaded)
    fused = _fused(loaded, concepts, settings, opened.artefacts.moments, progress)
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
    with recorder_for(settings.workers, base) as recorder:
        return fuse(
            base,
            concepts,
            settings.of_method,
            weights=settings.weights,
            moments_dir=moments_dir,
            recorder=recorder,
            progress=progress,
        )


def _check_new(out: Path) -> None:
    if out.exists():
        raise StateError(f"{out} already exists and a fused model is never changed: choose another --out, or remove it")


def _admitted(file: Path, base: Base) -> Concept:
    try:
        return admit(file.read_bytes(), base)
    except ConceptError as error:
        raise ConceptError(f"{file} cannot be fused: {error}") from error
