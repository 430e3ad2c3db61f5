"""`mos-client`: tune a concept, take part in rounds, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_client.cli import concepts, federation
from mos_client.tuning.settings import SETTINGS, Method, parse_settings
from mos_common.shell import counting, run, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune a concept on your own pictures, take part in rounds, draw. Pictures never leave this machine.",
)
Base = Annotated[str, typer.Option("--base", help="`tiny`, a diffusers folder, or a hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: the best there is.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16, bfloat16; default: what suits the device.")
]


@app.command(epilog='Example: mos-client tune pictures/ --concept "<cat>" --class cat')
def tune(
    images: Annotated[
        Path, typer.Argument(help="Folder with the pictures of one concept; captions in name.txt beside name.png.")
    ],
    concept: Annotated[str, typer.Option("--concept", help='Its name in prompts, like "<cat>".')],
    class_word: Annotated[str, typer.Option("--class", help="What it is a kind of: cat, person, car.")],
    base: Base = "tiny",
    out: Annotated[Path | None, typer.Option("--out", help="The concept file; default: NAME.safetensors here.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps; default: the base's preset.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    method: Annotated[
        Method, typer.Option("--method", help="The paper's ed-lora, or one of what it is compared with.")
    ] = Method.ED_LORA,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help=f"Any setting of docs/tuning.md: {', '.join(SETTINGS)}."),
    ] = None,
    vram: Annotated[
        float | None,
        typer.Option("--vram", min=0.1, help="Gigabytes that a step may take; default: what the GPU has free."),
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option("--tensorboard", help="A folder for TensorBoard's logs.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--anew", help="Go on from an interrupted run of the same pictures and settings.")
    ] = True,
    author: Annotated[str, typer.Option("--author", help="Written into the file, if you want that.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Under which licence you share the concept.")] = "",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Tune a concept on a folder of pictures and write its concept file."""
    from mos_client.pictures.folder import split_pictures
    from mos_common.names import check_concept_name

    check_concept_name(concept)
    changes = {"method": method.value, **parse_settings(settings or [])}
    split_pictures(images)
    out = out or Path(f"{concept.strip('<>')}.safetensors")
    from mos_client.tuning.tune_folder import progress_picture, tune_folder

    with counting(f"tuning {concept}") as count:
        tune_folder(
            images,
            concept=concept,
            class_word=class_word,
            base=base,
            out=out,
            work=out.with_name(f".{out.name}.tuning"),
            steps=steps,
            seed=seed,
            settings=changes,
            vram=vram,
            logs=tensorboard,
            resume=resume,
            author=author,
            licence=licence,
            device=device,
            dtype=dtype,
            on_step=lambda step: count(step.number, step.total, f"loss {step.loss:.4f}"),
        )
    say(
        f"{out} ({out.stat().st_size:,} bytes): draw with it: mos-client draw {out} 'a photo of {concept}' --out picture.png"
    )
    if progress_picture(out).is_file():
        say(f"what it drew on the way: {progress_picture(out)}")


@app.command(epilog='Example: mos-client draw fused/ "a meadow" --region "<alice/cat> @ 0,0,0.5,1" --out picture.png')
def draw(
    model: Annotated[Path, typer.Argument(help="A fused model's folder or a concept file.")],
    prompt: Annotated[str, typer.Argument(help='What to draw; concepts by name: "<cat> on the beach".')],
    out: Annotated[Path, typer.Option("--out", help="The picture, a PNG.")],
    base: Base = "tiny",
    region: Annotated[
        list[str] | None,
        typer.Option("--region", help='"PROMPT @ x0,y0,x1,y1" in fractions of the picture; repeat it.'),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="What not to draw.")] = "",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    steps: Annotated[int, typer.Option("--steps")] = 20,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Default: the base's own.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels; default: the base's own.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels; default: the base's own.")] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Any that the base is compatible with; default: its own.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a picture with a fused model or a single concept."""
    from mos_common.drawing import Drawing
    from mos_common.regions import parse_region

    regions = [parse_region(text) for text in region or []]
    how = Drawing(steps=steps, guidance=guidance, height=height, width=width, negative=negative, scheduler=scheduler)
    from mos_client.drawing.picture import draw_picture

    with counting("drawing") as count:
        draw_picture(
            model,
            prompt,
            out,
            base=base,
            regions=regions,
            seed=seed,
            how=how,
            device=device,
            dtype=dtype,
            on_step=lambda a, b: count(a, b, ""),
        )
    say(str(out))


concepts.register(app)
federation.register(app)


def main() -> None:
    """The `mos-client` command."""
    run(app)
