"""The command `export`, which `mos-client` and `mos-server` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.options import Base, SignedBy
from mos_common.shell import counting, say


def register(app: typer.Typer) -> None:
    """Add the command to `mos-client` or `mos-server`."""
    name = app.info.name
    app.command(epilog=f"Example: {name} export fused --for comfyui --out fused.safetensors")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A fused model's folder or a concept file.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write; must not exist yet.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="diffusers, lora, single-file or words.",
            show_default="diffusers, or lora with --for",
        ),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Say where the files go and what to type in comfyui, a1111 (and Forge), kohya or diffusers.",
            show_default="no tool",
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            "--words",
            help="How the one embedding of a word is made: mean, or fitted by text or by predictions.",
            show_default="predictions on a GPU and for a small UNet, else text",
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Draw with the exported files by diffusers, and compare.")
    ] = False,
    with_thumbnail: Annotated[
        bool, typer.Option("--thumbnail", help="Put a drawing of the first concept into the metadata.")
    ] = False,
    base: Base = "tiny",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Number format of lora, single-file and words: float16 or float32.", show_default="float16"
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device to fit and draw on: cpu, cuda, mps.")] = "cpu",
    kit: SignedBy = None,
) -> None:
    """Write a fused model or a concept in another format.

    diffusers: a folder that StableDiffusionPipeline.from_pretrained loads.

    lora: the changes alone, as one NAME.safetensors for diffusers, A1111, ComfyUI and kohya's
    scripts.

    single-file: a whole checkpoint of Stable Diffusion 1.x, 2.x or XL.

    words: the words alone, as textual inversions.

    Next to lora and single-file, NAME.words holds the words as textual inversions, with one
    embedding for all layers. Other tools therefore draw the concepts less well than mos-client
    does; --test says how much.
    """
    from mos_common.base_model import load_base
    from mos_common.exporting.export import ExportOptions
    from mos_common.exporting.export import export as write_export

    options = ExportOptions(kind, dtype, tool, words, with_thumbnail, test, kit)
    with counting("fitting words") as count:
        lines = write_export(model, load_base(base, device=device, dtype="float32"), out, options, count)
    for line in lines:
        say(line)
