"""`mos-server`: invite participants, run rounds, fuse, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.shell import run, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run rounds that fuse many people's concepts into one model.",
)
Base = Annotated[str, typer.Option("--base", help="`tiny`, a diffusers folder, or a hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: the best there is.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16, bfloat16; default: what suits the device.")
]


@app.command(epilog="Example: mos-server fuse cat.safetensors dog.safetensors --out fused")
def fuse(
    concepts: Annotated[list[Path], typer.Argument(help="Concept files.")],
    out: Annotated[Path, typer.Option("--out", help="The fused model's folder; must not exist.")],
    base: Base = "tiny",
    method: Annotated[str, typer.Option("--method", help="gradient, average or sum.")] = "gradient",
    ridge: Annotated[float | None, typer.Option("--ridge", help="λ of the equation.")] = None,
    preserve: Annotated[
        float | None, typer.Option("--preserve", help="μ: how much ordinary prompts on the base count.")
    ] = None,
    sum_weight: Annotated[
        float | None, typer.Option("--sum-weight", help="What `sum` multiplies every change with.")
    ] = None,
    moments: Annotated[
        Path | None, typer.Option("--moments", help="Keep second moments here, for the next fusion.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Fuse concept files into one model, without any federation."""
    from mos_server.fuse_command import fuse_files

    fused = fuse_files(
        concepts,
        out,
        base=base,
        method=method,
        ridge=ridge,
        preserve=preserve,
        sum_weight=sum_weight,
        moments_dir=moments,
        device=device,
        dtype=dtype,
        progress=lambda line: say(line, error=True),
    )
    for concept in fused.manifest.concepts:
        kept = ", ".join(f"{group} {survival.energy_kept:.3f}" for group, survival in concept.survival.items())
        say(f"{concept.token}  energy kept: {kept}" if kept else concept.token)
    say(f"{out}: draw with it: mos-client draw {out} 'a photo of {fused.manifest.concepts[0].token}' --out picture.png")


@app.command(epilog="Example: mos-server export fused --format diffusers --out full-model")
def export(
    model: Annotated[Path, typer.Argument(help="A fused model's folder.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write; must not exist.")],
    kind: Annotated[str, typer.Option("--format", help="diffusers.")] = "diffusers",
    base: Base = "tiny",
) -> None:
    """Write a fused model in another format; `diffusers` is a folder that StableDiffusionPipeline.from_pretrained loads."""
    from mos_common.base_model import load_base
    from mos_server.publish import export as write_export

    write_export(model, load_base(base, device="cpu", dtype="float32"), kind, out)
    say(str(out))


def main() -> None:
    """The `mos-server` command."""
    from mos_server import federation_cli

    federation_cli.register(app)
    run(app)
