"""Contact sheets: what a round's model draws of each concept, beside what it is compared with.

    single    the concept alone, by its own file
    fused     the fused model
    own       the fused model with the concept's own changes, where they are published
    average   the mean of all changes, which is what fusing without recordings gives

Every picture has the same prompt and seed and lies in a file of its own, named by the concept's
digest: a drawing that was interrupted goes on, and withdrawing a concept erases its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mos_common.errors import ConceptError, StateError, TrustError
from mos_common.files import write_atomically
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.published import published_model
from mos_server.state.records import PUBLISHED, Round

if TYPE_CHECKING:
    from mos_common.base_model import Base
    from mos_common.fused_model import FusedConcept, Manifest, NamedConcept
    from mos_common.pipeline.models import Opened
    from mos_common.progress import TextProgress

COLUMNS = ("single", "fused", "own", "average")
CONTEXT = "V on a blue background"
SEED = 0


@dataclass(frozen=True)
class Sheet:
    """The pictures of one model, some of which may not be drawn yet."""

    folder: Path

    def picture(self, digest: str, column: str) -> Path:
        """Return the file of one picture."""
        return self.folder / f"{digest}-{column}.webp"


def model_folder(state: State, journal: Journal, round_: Round) -> Path:
    """Return the folder of a round's published model, or of its candidate.

    Raises:
        StateError: the round has neither, or the published one is not its own.

    """
    if round_.status == PUBLISHED:
        return published_model(state, journal, round_.id)
    candidate = state.artefacts.candidate(round_.id)
    if not (candidate / "manifest.json").is_file():
        raise StateError(f"{round_.id} is {round_.status} and has no model to look at")
    return candidate


def sheet_of(state: State, round_id: str, adapter: str) -> Sheet:
    """Return the contact sheet of a model, by the digest of its adapter; it may not exist yet.

    A candidate that is published keeps its sheet; one that is fused again gets another.
    """
    return Sheet(state.artefacts.sheets / f"{round_id}-{adapter[:12]}")


def draw_sheet(
    state: State, journal: Journal, round_id: str, load: Callable[[], Base], progress: TextProgress
) -> Sheet:
    """Draw what is missing of the contact sheet of a round's model, and return the sheet.

    `load` loads the federation's base, if anything is missing.

    Raises:
        RequestError: there is no such round.
        StateError: it has no model, or a picture cannot be written.
        FusionError, TrustError: the model is damaged.

    """
    from mos_common.fused_model import ADAPTER, read_fused_manifest

    round_ = journal.rounds.get(round_id)
    folder = model_folder(state, journal, round_)
    manifest = read_fused_manifest(folder, candidate=True)
    sheet = sheet_of(state, round_id, manifest.files[ADAPTER].sha256)
    kept = {named.token: named for named in _kept(state, journal, round_id, progress)}
    missing = [
        (concept, column)
        for concept in manifest.concepts
        for column in COLUMNS
        if not sheet.picture(concept.digest, column).is_file() and _can_draw(concept, column, kept)
    ]
    if missing:
        _draw(state, folder, manifest, sheet, missing, kept, load(), progress)
    return sheet


def _kept(state: State, journal: Journal, round_id: str, progress: TextProgress) -> Iterator[NamedConcept]:
    """Yield the concepts of a round whose files are still here."""
    for upload in journal.uploads.admitted(round_id):
        try:
            yield from named_concepts(state, [upload])
        except StateError as error:
            progress(f"{upload.token} is drawn by the model alone: {error}")


def _can_draw(concept: FusedConcept, column: str, kept: dict[str, NamedConcept]) -> bool:
    if column == "own":
        return concept.own is not None and concept.token in kept
    # A model of which a concept was withdrawn still draws it, and whoever asked for that is gone.
    return concept.token in kept


def _draw(
    state: State,
    folder: Path,
    manifest: Manifest,
    sheet: Sheet,
    missing: list[tuple[FusedConcept, str]],
    kept: dict[str, NamedConcept],
    base: Base,
    progress: TextProgress,
) -> None:
    from mos_common.pipeline.attaching import with_own_of
    from mos_common.pipeline.models import open_model

    fused, average = _fused(folder, base), None
    for number, (concept, column) in enumerate(missing, 1):
        token = concept.token
        try:
            if column == "single":
                opened = open_model(state.artefacts.concept_file(concept.digest), base)
                token = kept[concept.token].concept.name
            elif column == "average":
                average = average or _average(base, manifest, kept)
                opened = average
            elif column == "own":
                opened = with_own_of([token], fused, folder, base)
            else:
                opened = fused
        except (ConceptError, TrustError, StateError) as error:
            progress(f"{number}/{len(missing)} {concept.token}, {column}: not drawn, {error}")
            continue
        write_atomically(sheet.picture(concept.digest, column), _picture(base, opened, token), mode=0o600)
        progress(f"{number}/{len(missing)} {concept.token}, {column}")


def _fused(folder: Path, base: Base) -> Opened:
    """Return a model of this server; a candidate bears no signature yet."""
    from mos_common.fused_model import check_base, read_fused

    fused = read_fused(folder, candidate=True)
    check_base(fused, base)
    return _opened(fused)


def _average(base: Base, manifest: Manifest, kept: dict[str, NamedConcept]) -> Opened:
    """Return the mean of the model's concepts that are still here, with the weights that it has."""
    from mos_server.fusion.fuse import fuse
    from mos_server.fusion.methods.average import AverageSettings

    weights = {each.token: each.weight for each in manifest.concepts if each.token in kept}
    return _opened(fuse(base, [kept[token] for token in weights], AverageSettings(), weights=weights))


def _opened(fused: object) -> Opened:
    from mos_common.fused_model import FusedModel
    from mos_common.pipeline.models import Opened
    from mos_common.recipes import Model

    assert isinstance(fused, FusedModel)
    classes = {each.token: each.class_word for each in fused.manifest.concepts}
    told = Model(kind="fused", name=fused.manifest.round or fused.manifest.method, digest="0" * 64)
    return Opened(fused.changes, fused.vocabulary, classes, told, (), fused.manifest)


def _picture(base: Base, opened: Opened, token: str) -> bytes:
    from mos_common.drawing import Drawing
    from mos_common.pictures import as_image, image_bytes
    from mos_common.pipeline.request import Request, draw_request
    from mos_common.prompts import about

    request = Request((about(CONTEXT, token),), (SEED,), how=Drawing())
    (picture,) = draw_request(request, base, opened).float().cpu()
    return image_bytes(as_image(picture), "WEBP")
