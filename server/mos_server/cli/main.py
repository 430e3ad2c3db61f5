"""`mos-server`: invite participants, run rounds, fuse, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.shell import add_version, run, say
from mos_server.cli import federation, fuse

app = typer.Typer(
    name="mos-server",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run rounds that fuse many people's concepts into one model.",
)
add_version(app)

fuse.register(app)
federation.register(app)


@app.command(epilog="Example: mos-server export fused --format lora --out fused.safetensors")
def export(
    model: Annotated[Path, typer.Argument(help="A fused model's folder.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write; must not exist yet.")],
    kind: Annotated[str, typer.Option("--format", help="diffusers, lora or single-file.")] = "diffusers",
    base: Annotated[str, typer.Option("--base", help="`tiny`, a folder, a checkpoint file, a hub id.")] = "tiny",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Number format of lora and single-file: float16 or float32.", show_default="float16"
        ),
    ] = None,
) -> None:
    """Write a fused model in another format.

    diffusers: a folder that StableDiffusionPipeline.from_pretrained loads.

    lora: the changes alone, as one NAME.safetensors for diffusers, A1111, ComfyUI and kohya's
    scripts.

    single-file: a whole checkpoint of Stable Diffusion 1.x.

    Next to the last two, NAME.words holds the words as textual inversions, with one embedding for
    all layers. Other tools therefore draw the concepts less well than mos-client does.
    """
    from mos_common.base_model import load_base
    from mos_server.models.export import export as write_export

    for line in write_export(model, load_base(base, device="cpu", dtype="float32"), kind, out, dtype):
        say(line)


def main() -> None:
    """Run the `mos-server` command."""
    run(app)
