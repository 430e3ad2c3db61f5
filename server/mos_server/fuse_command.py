"""Fuse files on disk: what `mos-server fuse` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mos_common.base_model import BaseModel, load_base
from mos_common.concept import Concept
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError, RequestError, StateError
from mos_common.fused_model import FusedModel, NamedConcept
from mos_server.admission import admit
from mos_server.config import FusionSettings
from mos_server.fusion.fuse import fuse
from mos_server.publish import write_fused

METHODS = ("gradient", "average", "sum")


def fuse_files(
    files: Sequence[Path],
    out: Path,
    *,
    base: str = "tiny",
    method: str = "gradient",
    ridge: float | None = None,
    preserve: float | None = None,
    sum_weight: float | None = None,
    moments_dir: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> FusedModel:
    """Fuse concept files into the folder `out`; a setting that is None has its default.

    Raises:
        RequestError: unknown method, or a setting out of range. StateError: `out` exists.
        ConceptError, FusionError: a concept cannot be used; the message names the file.

    """
    if method not in METHODS:
        raise RequestError(f"--method {method} is not known: choose one of {', '.join(METHODS)}")
    if out.exists():
        raise StateError(
            f"{out} is there already and a fused model is never changed: choose another --out, or remove it"
        )
    given = {"ridge": ridge, "preserve": preserve, "sum_weight": sum_weight}
    settings = FusionSettings(method=method, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    for file in files:
        read_concept(file)
    loaded = load_base(base, device=device, dtype=dtype)
    concepts = [NamedConcept("", _admitted(file, loaded)) for file in files]
    fused = fuse(loaded, concepts, settings, moments_dir=moments_dir, progress=progress)
    write_fused(fused, out)
    return fused


def _admitted(file: Path, base: BaseModel) -> Concept:
    try:
        return admit(file.read_bytes(), base)
    except ConceptError as error:
        raise ConceptError(f"{file} cannot be fused: {error}") from error
