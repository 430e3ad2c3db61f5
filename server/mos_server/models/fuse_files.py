"""Fuse concepts outside of any round, from files or from a federation's state: what `mos-server fuse` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError, RequestError, StateError
from mos_common.fused_model import FusedModel, NamedConcept
from mos_server.admission import admit
from mos_server.fusion.fuse import fuse
from mos_server.fusion.settings import METHODS, FusionSettings
from mos_server.fusion.statistics import Recorder
from mos_server.models.publish import write_fused

Progress = Callable[[str], None]


def settings_from(method: str, given: Mapping[str, object]) -> FusionSettings:
    """The settings of a command line; what is None has its default.

    Raises:
        RequestError: unknown method, or a setting out of range.

    """
    if method not in METHODS:
        raise RequestError(f"--method {method} is not known: choose one of {', '.join(METHODS)}")
    return FusionSettings(method=method, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def weights_from(words: Sequence[str]) -> dict[str, float]:
    """`<alice/cat>=2` and the like, by token.

    Raises:
        RequestError: it is not written like that.

    """
    weights = {}
    for word in words:
        token, equals, number = word.rpartition("=")
        try:
            weights[token] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise RequestError(f"--weight {word}: expected a token and a number, such as '<alice/cat>=2'")
    return weights


def fuse_files(
    files: Sequence[Path],
    out: Path,
    *,
    base: str = "tiny",
    settings: FusionSettings | None = None,
    weights: Mapping[str, float] | None = None,
    moments_dir: Path | None = None,
    workers: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = lambda line: None,
) -> FusedModel:
    """Fuse concept files into the folder `out`.

    Raises:
        StateError: `out` exists. ConceptError, FusionError: a concept cannot be used; the message names the file.

    """
    _check_new(out)
    settings = settings or settings_from("gradient", {})
    for file in files:
        read_concept(file)
    loaded = load_base(base, device=device, dtype=dtype)
    concepts = [NamedConcept("", _admitted(file, loaded)) for file in files]
    with _recorder(workers, loaded) as recorder:
        fused = fuse(
            loaded, concepts, settings, weights=weights, moments_dir=moments_dir, recorder=recorder, progress=progress
        )
    write_fused(fused, out)
    return fused


def fuse_state(
    state: Path,
    out: Path,
    *,
    round_id: str | None = None,
    only: Sequence[str] = (),
    settings: FusionSettings | None = None,
    weights: Mapping[str, float] | None = None,
    workers: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = lambda line: None,
) -> FusedModel:
    """Fuse what a federation keeps (of one round, or all), or any subset of it, into the folder `out`.

    What its rounds have recorded is not recorded again.

    Raises:
        StateError: no state folder, or `out` exists. RequestError: no such round, or a chosen concept is not kept.
        FusionError: none is kept.

    """
    from mos_server.state.concepts import kept_uploads, named_concepts
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Store
    from mos_server.state.rekey import rekey_state

    _check_new(out)
    opened = open_state(state)
    with closing(Store(opened.database)) as store:
        concepts = named_concepts(opened, kept_uploads(store, round_id, only))
    loaded = load_base(opened.config.base, device=device, dtype=dtype)
    rekey_state(opened, loaded)
    settings = settings or settings_from("gradient", {})
    with _recorder(workers, loaded) as recorder:
        fused = fuse(
            loaded,
            concepts,
            settings,
            weights=weights,
            moments_dir=opened.moments,
            recorder=recorder,
            progress=progress,
        )
    write_fused(fused, out)
    return fused


def _recorder(workers: str | None, base: Base) -> AbstractContextManager[Recorder | None]:
    if workers is None:
        return nullcontext()
    from mos_server.fusion.cluster import recorder_on

    return recorder_on(workers, base)


def _check_new(out: Path) -> None:
    if out.exists():
        raise StateError(
            f"{out} is there already and a fused model is never changed: choose another --out, or remove it"
        )


def _admitted(file: Path, base: Base) -> Concept:
    try:
        return admit(file.read_bytes(), base)
    except ConceptError as error:
        raise ConceptError(f"{file} cannot be fused: {error}") from error
