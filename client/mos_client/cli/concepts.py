"""The commands around tuning: check pictures, inspect and import concept files, measure leakage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_client.cli.options import Author, Base, ClassWord, Concept, ConceptOut, Device, Images, Licence, Mark
from mos_common.errors import RequestError
from mos_common.shell import say


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-client`."""
    app.command(epilog="Example: mos-client check pictures/")(check)
    app.command(epilog="Example: mos-client inspect cat.safetensors")(inspect)
    app.command("import", epilog='Example: mos-client import lora.safetensors --concept "<cat>" --class cat')(import_)
    app.command(epilog="Example: mos-client leakage cat.safetensors pictures/")(leakage)


def check(
    images: Images,
    base: Base = "tiny",
    out: Annotated[Path, typer.Option("--out", help="The contact sheet, a PNG.")] = Path("check.png"),
    masks_with: Annotated[
        Path | None,
        typer.Option(
            "--masks-with",
            help="Folder with a CLIPSeg model: write masks for pictures that have none. Needs --class.",
            show_default="write none",
        ),
    ] = None,
    class_word: Annotated[
        str, typer.Option("--class", help="What the masks mark: cat, person, car.", show_default="nothing")
    ] = "",
    concept: Annotated[
        str | None, typer.Option("--concept", help='Its name in prompts, like "<cat>".', show_default="not known")
    ] = None,
    mark: Mark = None,
    device: Device = None,
) -> None:
    """Report what a folder of pictures holds, with a contact sheet; nothing is tuned."""
    from mos_client.pictures.marks import Marks

    marks = Marks(concept, mark)
    if masks_with is not None:
        if not class_word:
            raise RequestError("--masks-with needs --class: say what the masks mark, such as --class cat")
        from mos_client.pictures.segmentation import draw_masks

        for mask in draw_masks(images, class_word, masks_with, device or "cpu"):
            say(f"mask drawn: {mask}")
    from mos_client.pictures.check import check_folder
    from mos_common.base_model import load_base

    for line in check_folder(images, load_base(base, device="cpu"), out, marks):
        say(line)


def inspect(file: Annotated[Path, typer.Argument(help="A concept file.")]) -> None:
    """Show everything in a concept file: nothing else would leave this machine."""
    from mos_client.inspection.describe import describe

    for line in describe(file):
        say(line)


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="A LoRA (kohya, A1111, diffusers, PEFT), a textual inversion, both, or edlora.pth."),
    ],
    concept: Concept,
    class_word: ClassWord,
    trigger: Annotated[
        str, typer.Option("--trigger", help="The words that the LoRA's prompts need.", show_default="the class")
    ] = "",
    base: Base = "tiny",
    out: ConceptOut = None,
    paper_alpha: Annotated[
        float, typer.Option("--paper-alpha", min=0.01, help="For edlora.pth: the alpha it was sampled with.")
    ] = 1.0,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", min=1, help="Reduce every change to at most this rank: a smaller file.", show_default="as it is"
        ),
    ] = None,
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
        paper_alpha=paper_alpha,
        rank=rank,
        author=author,
        licence=licence,
    )
    words = f"{imported.words[0].shape[1]} words" if imported.words else f"called {imported.trigger or class_word!r}"
    say(f"{out}: {len(imported.pairs)} layers, {words}")


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
