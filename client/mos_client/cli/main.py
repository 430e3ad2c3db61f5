"""`mos-client`: tune a concept, take part in rounds, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from click.core import ParameterSource

from mos_client.cli import concepts, federation, verify
from mos_client.cli.options import Author, ClassWord, Concept, ConceptOut, Images, Licence, Mark, Own, Settings, Vram
from mos_client.cli.picture_options import Again, Certificate, Controls, Count, PreviewTo, PrivateKey, Seeds
from mos_client.tuning.settings import Method, TuningSettings, tuning_texts
from mos_common.commands import draw_command
from mos_common.errors import RequestError
from mos_common.exporting import command
from mos_common.flags import FiniteType
from mos_common.options import Base, Device, Dtype, Seed, SignedBy, TuningSteps
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
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="The picture: a .png, .jpg or .webp.")],
    prompt: Annotated[
        str | None,
        typer.Argument(help='What to draw; concepts by name: "<cat> on the beach".', show_default="the scene's"),
    ] = None,
    again: Again = None,
    base: Base = "tiny",
    scene: Annotated[
        Path | None,
        typer.Option(
            "--scene",
            help="A scene file (YAML or JSON) with the prompt, regions and settings; flags override what it says.",
            show_default="none",
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            help='"PROMPT @ x0,y0,x1,y1" in fractions of the picture, "PROMPT @ mask.png", or with --layout '
            '"PROMPT @ COLOUR"; repeatable.',
            show_default="the scene's, or the prompt alone",
        ),
    ] = None,
    control: Controls = None,
    layout: Annotated[
        Path | None,
        typer.Option("--layout", help="A painted picture in which each region has a colour.", show_default="none"),
    ] = None,
    auto_layout: Annotated[
        Literal["side-by-side", "attention"] | None,
        typer.Option(
            "--auto-layout",
            help="Lay out the concepts of the prompt: side by side, or where a first pass puts their class words.",
            show_default="the scene's, or no regions",
        ),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What not to draw.", show_default="nothing")
    ] = None,
    seed: Seed = 0,
    count: Count = None,
    seeds: Seeds = None,
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
    kit: SignedBy = None,
    own: Annotated[
        Own,
        typer.Option(
            "--own", help="`auto`: a concept is drawn by its own spatial changes, where they lie beside the model."
        ),
    ] = Own.AUTO,
    preview: PreviewTo = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
) -> None:
    """Draw pictures with a fused model or a single concept, or a picture again."""
    from mos_client.drawing.controls import parse_controls
    from mos_client.drawing.provenance import read_signature
    from mos_client.drawing.regions import parse_regions
    from mos_client.drawing.scenes import Scene, read_scene
    from mos_client.drawing.seeds import seeds_of
    from mos_common.drawing import Drawing
    from mos_common.settings import parse_settings

    flags = {"steps": steps, "guidance": guidance, "height": height, "width": width, "negative": negative}
    given = {name: value for name, value in flags.items() if value is not None}
    drawn_by: dict[str, Any] = {"base": base, "device": device, "dtype": dtype, "kit": kit}
    drawn_by["signature"] = read_signature(certificate, private_key)
    seed_given = ctx.get_parameter_source("seed") is not ParameterSource.DEFAULT
    if again is not None:
        others = [prompt, scene, region, layout, auto_layout, settings, count, seeds, preview, *given.values()]
        if seed_given or own is not Own.AUTO or any(value is not None for value in others):
            raise RequestError("--again draws what the picture's recipe says: leave out the prompt, and how to draw it")
        from mos_client.drawing.again import draw_again

        with counting("drawing") as counted:
            drawn_by |= {"controls": control or [], "on_step": lambda done, total: counted(done, total, "")}
            compared = draw_again(model, again, out, **drawn_by)
        say(f"{out}: {compared.said_of(again)}")
        return
    told = Scene("") if scene is None else read_scene(scene)
    if scene is None and prompt is None:
        raise RequestError('nothing to draw: give a prompt, such as "<cat> on the beach", a --scene, or --again')
    regions = parse_regions(region or [], layout) if region or layout else [] if auto_layout else told.regions
    drawn_by["controls"] = told.controls if control is None else parse_controls(control)
    if not seed_given and seeds is None:
        seed = told.seed or 0
        seeds = told.seeds if count is None else None
    drawn_by |= {"how": Drawing(**{**told.settings, **given, **parse_settings(Drawing, settings or [])})}
    drawn_by |= {"seeds": seeds_of(seed, count, seeds), "preview": preview, "regions": regions}
    drawn_by["own"] = own is Own.AUTO
    drawn_by["auto_layout"] = auto_layout or (None if regions else told.auto_layout)
    text = told.prompt if prompt is None else prompt
    from mos_client.drawing.picture import draw_picture

    with counting("drawing") as counted:
        files = draw_picture(model, text, out, **drawn_by, on_step=lambda done, total: counted(done, total, ""))
    for file in files:
        say(str(file))


concepts.register(app)
command.register(app)
federation.register(app)
verify.register(app)


def main() -> None:
    """Run the `mos-client` command."""
    run(app)
