"""`mos-client`: tune a concept, take part in rounds, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_client.cli import concepts, federation
from mos_client.cli.options import Author, ClassWord, Concept, ConceptOut, Images, Licence, Mark, Settings, Vram
from mos_client.tuning.settings import Method, TuningSettings, tuning_texts
from mos_common.commands import draw_command
from mos_common.exporting import command
from mos_common.flags import FiniteType
from mos_common.options import Base, Device, Dtype, Seed, TuningSteps
from mos_common.shell import add_version, counting, lists_settings, run, say

app = typer.Typer(
    name="mos-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune a concept on your own pictures, take part in rounds, draw. Pictures never leave this machine.",
)
add_version(app)


def _drawing() -> type:
    from mos_common.drawing import Drawing

    return Drawing


@app.command(
    cls=lists_settings(lambda: TuningSettings),
    epilog='Example: mos-client tune pictures/ --concept "<cat>" --class cat --set rank=8',
)
def tune(
    images: Images,
    concept: Concept,
    class_word: ClassWord,
    mark: Mark = None,
    base: Base = "tiny",
    out: ConceptOut = None,
    steps: TuningSteps = None,
    seed: Seed = 0,
    method: Annotated[
        Method, typer.Option("--method", help="The paper's ed-lora, or a method that it is compared with.")
    ] = Method.ED_LORA,
    settings: Settings = None,
    vram: Vram = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="A folder for TensorBoard's logs.", show_default="no logs")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--anew", help="Resume an interrupted run of the same pictures and settings.")
    ] = True,
    author: Author = "",
    licence: Licence = "",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Tune a concept on a folder of pictures and write its concept file."""
    from mos_client.tuning.request import TuneRequest

    request = TuneRequest(
        images=images,
        concept=concept,
        class_word=class_word,
        base=base,
        steps=steps,
        seed=seed,
        author=author,
        licence=licence,
        device=device,
        dtype=dtype,
        settings={"method": method.value} | tuning_texts(settings or []),
        vram=vram,
        mark=mark,
    )
    request.pictures()  # fails on an unusable folder before torch is loaded
    out = out or Path(f"{concept.strip('<>')}.safetensors")
    from mos_client.tuning.tune_folder import progress_picture, tune_folder

    with counting(f"tuning {concept}") as count:
        tune_folder(
            request,
            out,
            work=out.with_name(f".{out.name}.tuning"),
            resume=resume,
            logs=tensorboard,
            on_step=lambda step: count(step.number, step.total, f"loss {step.loss:.4f}"),
        )
    drawn_by = draw_command(out, f"a photo of {concept}", base)
    say(f"{out} ({out.stat().st_size:,} bytes): draw with it: {drawn_by}")
    if progress_picture(out).is_file():
        say(f"drawings made while tuning: {progress_picture(out)}")


@app.command(
    cls=lists_settings(_drawing),
    epilog='Example: mos-client draw fused/ "a meadow" --region "<alice/cat> @ 0,0,0.5,1" --out picture.png',
)
def draw(
    model: Annotated[Path, typer.Argument(help="A fused model's folder or a concept file.")],
    prompt: Annotated[str, typer.Argument(help='What to draw; concepts by name: "<cat> on the beach".')],
    out: Annotated[Path, typer.Option("--out", help="The picture: a .png, .jpg or .webp.")],
    base: Base = "tiny",
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            help='"PROMPT @ x0,y0,x1,y1" in fractions of the picture; repeatable.',
            show_default="the prompt alone",
        ),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What not to draw.", show_default="nothing")
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.", show_default="20")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            click_type=FiniteType(0),
            help="Scale of classifier-free guidance; 1: none.",
            show_default="the base's own",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Width in pixels.", show_default="the base's own")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", help="Height in pixels.", show_default="the base's own")
    ] = None,
    settings: Settings = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a picture with a fused model or a single concept."""
    from mos_common.drawing import Drawing
    from mos_common.regions import parse_region
    from mos_common.settings import parse_settings

    flags = {"steps": steps, "guidance": guidance, "height": height, "width": width, "negative": negative}
    given = {name: value for name, value in flags.items() if value is not None}
    drawing = Drawing(**given | parse_settings(Drawing, settings or []))
    regions = [parse_region(text) for text in region or []]
    from mos_client.drawing.picture import draw_picture

    with counting("drawing") as count:
        draw_picture(
            model,
            prompt,
            out,
            base=base,
            regions=regions,
            seed=seed,
            how=drawing,
            device=device,
            dtype=dtype,
            on_step=lambda done, total: count(done, total, ""),
        )
    say(str(out))


concepts.register(app)
command.register(app)
federation.register(app)


def main() -> None:
    """Run the `mos-client` command."""
    run(app)
