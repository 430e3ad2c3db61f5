"""Export a fused model or a concept to other tools' formats.

diffusers   a whole folder: the base with every change added into its weights
lora        the changes alone, as one file in kohya's spelling
single-file the base with every change added, as one checkpoint of Stable Diffusion 1.x, 2.x or XL
words       the words alone; they belong to the changes

All but `diffusers` write each concept's words as a textual inversion. That has one embedding per
word, which is fitted to the layer-wise ones (`fitting.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.drawing import draw
from mos_common.edlora import attached
from mos_common.errors import RequestError, StateError
from mos_common.exporting.fitting import Fit, fit_words, usual_fit
from mos_common.exporting.metadata import thumbnail
from mos_common.exporting.shared import Shared, read_shared
from mos_common.exporting.single_file import check_single_file
from mos_common.exporting.snippet import diffusers_snippet
from mos_common.exporting.tools import TOOLS, check_stem, instructions, prompt_for, tool_named
from mos_common.exporting.trial import trial_picture, try_out
from mos_common.exporting.writing import Export, write_diffusers, write_lora, write_single_file, write_words
from mos_common.files import check_writable

FORMATS = ("diffusers", "lora", "single-file", "words")
FILE_DTYPES = {"float16": torch.float16, "float32": torch.float32}
FITTED = {
    Fit.MEAN: "the mean over the layers",
    Fit.TEXT: "fitted to the layer-wise ones by their text features",
    Fit.PREDICTIONS: "fitted to the layer-wise ones by what the UNet predicts",
}
# Called with (done, total, token) while words are fitted.
OnFit = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ExportOptions:
    """The format of an export and its variations; None is a sensible default.

    `tool` is a key of `TOOLS`, `fit` a `Fit`. `with_thumbnail` puts a drawing of the first concept
    into the metadata. `test` draws with the exported files by diffusers. A fused model must be
    signed by the operator of `kit`.

    Raises:
        RequestError: a value is unknown, or values do not go together.

    """

    kind: str | None = None
    dtype: str | None = None
    tool: str | None = None
    fit: str | None = None
    with_thumbnail: bool = False
    test: bool = False
    kit: Path | None = None

    def __post_init__(self) -> None:
        if self.tool is not None:
            tool_named(self.tool)
        if self.format not in FORMATS:
            raise RequestError(f"--format {self.format} is not known: choose one of {', '.join(FORMATS)}")
        if self.fit is not None and self.fit not in list(Fit):
            raise RequestError(f"--words {self.fit} is not known: choose one of {', '.join(Fit)}")
        if self.format == "diffusers":
            self._check_folder()
        if self.dtype is not None and self.dtype not in FILE_DTYPES:
            raise RequestError(
                f"--dtype {self.dtype} is not known: this format is written in {' or '.join(FILE_DTYPES)}"
            )

    @property
    def format(self) -> str:
        """The format to write: by default a LoRA for a tool, and else a folder of diffusers."""
        return self.kind or ("diffusers" if self.tool is None else "lora")

    def _check_folder(self) -> None:
        if self.dtype is not None:
            raise RequestError(
                f"--dtype {self.dtype}: it goes with --format lora or single-file; a folder is always float32"
            )
        if self.with_thumbnail:
            raise RequestError("--thumbnail: a folder of diffusers has no place for one; add --format lora")
        if self.fit is not None and not self.test:
            raise RequestError(
                f"--words {self.fit}: a folder of diffusers holds the layer-wise words; add --format lora"
            )
        if self.tool not in (None, "diffusers"):
            raise RequestError(f"--for {self.tool} does not load a folder of diffusers: add --format lora")


def export(
    source: Path, base: Base, out: Path, options: ExportOptions | None = None, on_fit: OnFit | None = None
) -> list[str]:
    """Write a fused model's folder or a concept file in another format; return lines about it.

    Raises:
        RequestError: the base or the source has no such format, or `out` is not its kind of path.
        StateError: an output already exists, or cannot be written.
        FusionError, ConceptError, BaseModelError: the source is damaged, or made for another base.
        TrustError: a file of a fused model was changed, or its signature does not hold.

    """
    options = options or ExportOptions()
    if options.format == "single-file":
        check_single_file(base)
    shared = read_shared(source, base, options.kit)
    _check_out(out, options, shared)
    fit = Fit(options.fit) if options.fit else usual_fit(base)
    export = Export(
        shared=shared,
        base=base,
        kind=options.format,
        out=out,
        words=_one_embedding_each(shared, base, fit, on_fit) if options.format != "diffusers" or options.test else {},
        how=(
            f"these formats hold one embedding per word, {FITTED[fit]}, so concepts are drawn less well than by "
            "mos-client"
        ),
        dtype=FILE_DTYPES[options.dtype or "float16"],
        tool=TOOLS[options.tool] if options.tool else None,
        more=_thumbnail(shared, base) if options.with_thumbnail else {},
    )
    match export.kind:
        case "diffusers":
            write_diffusers(export)
        case "lora":
            write_lora(export)
        case "single-file":
            write_single_file(export)
        case "words":
            write_words(export)
    return [*_written(export), *_how_to_use(export), *(try_out(export) if options.test else [])]


def _one_embedding_each(shared: Shared, base: Base, fit: Fit, on_fit: OnFit | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for token, words in shared.vocabulary.items():

        def count(done: int, total: int, token: str = token) -> None:
            if on_fit:
                on_fit(len(found) * total + done, len(shared.vocabulary) * total, token)

        found[token] = fit_words(base, shared.changes, token, words, fit, count)
    return found


def _thumbnail(shared: Shared, base: Base) -> dict[str, str]:
    """Return a drawing of the first concept; pictures that it was tuned on are not known here."""
    prompt = prompt_for(shared.credits, None, dict.fromkeys(shared.vocabulary, Path()))
    with attached(base, shared.changes):
        return thumbnail(draw(base, [prompt], [0], vocabulary=shared.vocabulary)[0])


def _check_out(out: Path, options: ExportOptions, shared: Shared) -> None:
    kind = options.format
    if kind in ("lora", "single-file") and out.suffix != ".safetensors":
        raise RequestError(f"--out {out}: this format is a single file, NAME.safetensors")
    if kind == "words":
        _check_words(out, shared)
    if options.tool is not None and kind != "diffusers":
        check_stem(out, TOOLS[options.tool])
    words = [out.with_suffix(".words")] if kind in ("lora", "single-file") and shared.vocabulary else []
    for taken in [out, *words, *([trial_picture(out)] if options.test else [])]:
        if taken.exists():
            raise StateError(f"{taken} already exists: choose another --out")
    check_writable(out)


def _check_words(out: Path, shared: Shared) -> None:
    if not shared.vocabulary:
        (only,) = shared.credits
        raise RequestError(
            f"--format words: {only.token} has no words of its own; prompts call it {only.called!r}. "
            "Choose --format lora"
        )
    if out.suffix not in ("", ".safetensors") or (out.suffix and len(shared.vocabulary) > 1):
        raise RequestError(
            f"--out {out}: the words of {len(shared.vocabulary)} concepts are as many files; give the name of a folder"
            if len(shared.vocabulary) > 1
            else f"--out {out}: the words of one concept are one file, NAME.safetensors, or a folder with that file"
        )


def _written(export: Export) -> list[str]:
    if export.kind == "diffusers":
        return [str(export.out)]
    if export.kind == "words":
        return [f"{export.out}: the words, as textual inversions; {export.how}"]
    if export.words:
        return [str(export.out), f"{export.words_folder}: the words, as textual inversions; {export.how}"]
    return [f"{export.out}: prompts call {export.shared.credits[0].token} {export.shared.credits[0].called!r}"]


def _how_to_use(export: Export) -> list[str]:
    if export.tool is None:
        return []
    if export.tool is TOOLS["diffusers"]:
        return diffusers_snippet(export)
    return instructions(export.kind, export.out, export.inversions, export.prompt, export.tool)
