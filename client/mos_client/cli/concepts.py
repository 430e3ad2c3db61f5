"""The commands around tuning: check pictures, inspect and import concept files, measure leakage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_client.cli.options import Author, ClassWord, Concept, ConceptOut, Images, Licence, Mark, Settings, Vram
from mos_client.tuning.settings import TuningSettings, tuning_texts
from mos_common.errors import RequestError
from mos_common.flags import FiniteType
from mos_common.options import Base, Device, Dtype, SignedBy, TuningSteps
from mos_common.shell import lists_settings, say


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-client`."""
    app.command(cls=lists_settings(lambda: TuningSettings), epilog="Example: mos-client check pictures/ --class cat")(
        check
    )
    app.command(epilog="Example: mos-client inspect cat.safetensors")(inspect)
    app.command("import", epilog='Example: mos-client import lora.safetensors --concept "<cat>" --class cat')(import_)
    app.command(epilog="Example: mos-client leakage cat.safetensors pictures/")(leakage)


def check(
    images: Images,
    base: Base = "tiny",
    out: Annotated[Path, typer.Option("--out", help="The contact sheet: a .png, .jpg or .webp.")] = Path("check.png"),
    crops: Annotated[
        Path | None,
        typer.Option(
            "--crops",
            help="A new folder for every picture as the base sees it: cropped, and dark outside its mask.",
            show_default="write none",
        ),
    ] = None,
    masks_with: Annotated[
        Path | None,
        typer.Option(
            "--masks-with",
            help="Folder with a CLIPSeg model: write masks for pictures that have none. Needs --class.",
            show_default="write none",
        ),
    ] = None,
    concept: Annotated[
        str | None, typer.Option("--concept", help='Its name in prompts, like "<cat>".', show_default="not judged")
    ] = None,
    class_word: Annotated[
        str,
        typer.Option(
            "--class", help="The kind of thing it is, and what masks mark: cat, person, car.", show_default="not judged"
        ),
    ] = "",
    mark: Mark = None,
    steps: TuningSteps = None,
    settings: Settings = None,
    vram: Vram = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Report what a folder of pictures holds, and judge a tuning on it; nothing is tuned.

    It is the judgement of `tune` and `join` with the same flags, with the memory and the time they
    would take. The contact sheet shows the pictures as the base sees them.
    """
    from mos_client.tuning.request import TuneRequest

    request = TuneRequest(
        images=images,
        concept=concept or "<concept>",
        class_word=class_word or "thing",
        base=base,
        steps=steps,
        device=device,
        dtype=dtype,
        settings=tuning_texts(settings or []),
        vram=vram,
        mark=mark,
    )
    if masks_with is not None:
        if not class_word:
            raise RequestError("--masks-with needs --class: say what the masks mark, such as --class cat")
        from mos_client.pictures.segmentation import draw_masks

        for mask in draw_masks(images, class_word, masks_with, device or "cpu"):
            say(f"mask drawn: {mask}")
    from mos_client.pictures.check import check_folder
    from mos_client.pictures.folder import scan, split
    from mos_client.pictures.marks import Marks
    from mos_client.tuning.estimate import estimate
    from mos_client.tuning.judgement import judge
    from mos_common.base_model import load_base

    loaded = load_base(base, device=device, dtype=dtype)
    marks = Marks(concept, mark)
    folder = scan(images, marks)
    for line in check_folder(images, loaded, out, marks, scanned=folder, crops=crops):
        say(line)
    concept_out = Path(f"{request.concept.strip('<>')}.safetensors")
    judged = judge(
        request,
        concept_out,
        concept_out.with_name(f".{concept_out.name}.tuning"),
        base=loaded,
        pictures=split(folder.pictures),
    )
    for line in judged.remarks:
        say(f"look at {line}")
    for line in estimate(judged):
        say(line)
    say("nothing speaks against tuning on it")


def inspect(
    file: Annotated[Path, typer.Argument(help="A concept file or a fused model's folder.")], kit: SignedBy = None
) -> None:
    """Show everything in a concept file, which is all that would leave, or in a fused model."""
    from mos_client.inspection.describe import describe
    from mos_client.inspection.fused import describe_model
    from mos_common.model_folder import check_kit_applies

    check_kit_applies(kit, file)
    for line in describe_model(file, kit) if file.is_dir() else describe(file):
        say(line)


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="A LoRA or its folder (kohya, A1111, diffusers, PEFT, LyCORIS, OneTrainer, ComfyUI), a textual "
            "inversion, both, or edlora.pth."
        ),
    ],
    concept: Concept,
    class_word: ClassWord,
    trigger: Annotated[
        str,
        typer.Option(
            "--trigger",
            help="The words that the LoRA's prompts need.",
            show_default="what its file names, or the class",
        ),
    ] = "",
    trigger_anyway: Annotated[
        bool,
        typer.Option("--trigger-anyway", help="Take --trigger, or without it the class, whatever the file names."),
    ] = False,
    base: Base = "tiny",
    out: ConceptOut = None,
    paper_alpha: Annotated[
        float,
        typer.Option(
            "--paper-alpha", click_type=FiniteType(0.01), help="For edlora.pth: the alpha it was sampled with."
        ),
    ] = 1.0,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=1,
            help="Make every change the nearest LoRA of at most this rank: needed for DoRA, LoHa, LoKr and whole "
            "differences; a smaller file for a LoRA.",
            show_default="as it is",
        ),
    ] = None,
    without_convolutions: Annotated[
        bool,
        typer.Option(
            "--leave-out-convolutions",
            help="Import the rest of a file that changes convolutions larger than 1x1, and say what is lost.",
        ),
    ] = False,
    words: Annotated[
        str,
        typer.Option(
            "--words",
            metavar="NAME",
            help="Which of several words in a LoRA's file is meant.",
            show_default="the only one",
        ),
    ] = "",
    author: Author = "",
    licence: Licence = "",
) -> None:
    """Make a concept file from other tools' files. Nothing in them is executed."""
    from mos_client.importing.import_files import import_files
    from mos_common.base_model import load_base

    out = out or Path(f"{concept.strip('<>')}.safetensors")
    imported = import_files(
        files,
        concept=concept,
        class_word=class_word,
        base=load_base(base, device="cpu"),
        out=out,
        trigger=trigger,
        trigger_anyway=trigger_anyway,
        paper_alpha=paper_alpha,
        rank=rank,
        without_convolutions=without_convolutions,
        words=words,
        author=author,
        licence=licence,
    )
    called = f"{imported.words[0].shape[1]} words" if imported.words else f"called {imported.trigger or class_word!r}"
    say(f"{out}: {len(imported.pairs)} layers, {called}")


def leakage(
    file: Annotated[Path, typer.Argument(help="A concept file.")],
    images: Annotated[Path, typer.Argument(help="The pictures it was tuned on.")],
    others: Annotated[
        Path | None,
        typer.Option(
            "--others",
            help="More pictures of the same thing that it was not tuned on, for a more certain answer.",
            show_default="none",
        ),
    ] = None,
    base: Base = "tiny",
    device: Device = None,
) -> None:
    """Measure how well a stranger who has the file could tell which pictures it was tuned on."""
    from mos_client.inspection.leakage import measure_leakage
    from mos_common.base_model import load_base
    from mos_common.concept_file import read_concept

    for line in measure_leakage(load_base(base, device=device), read_concept(file), images, others).lines():
        say(line)
