"""The participant's commands of the federation: join, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import RequestError
from mos_common.shell import counting, say

KitFile = Annotated[Path, typer.Argument(metavar="KIT", help="The file that the operator sent.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-client`."""
    app.command(epilog='Example: mos-client join alice.kit pictures/ --concept "<cat>" --class cat')(join)
    app.command(epilog="Example: mos-client download alice.kit --state mos-state/cat --out model")(download)


def join(
    kit: KitFile,
    images: Annotated[Path, typer.Argument(help="Folder with the pictures of one concept; they stay where they are.")],
    concept: Annotated[str, typer.Option("--concept", help='Its name in prompts, like "<cat>".')],
    class_word: Annotated[str, typer.Option("--class", help="What it is a kind of: cat, person, car.")],
    base: Annotated[str, typer.Option("--base", help="The base model that the operator uses.")] = "tiny",
    state: Annotated[
        Path | None, typer.Option("--state", help="Where everything is kept; default: mos-state/NAME here.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="End after so many published models.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps; default: the base's preset.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    author: Annotated[str, typer.Option("--author", help="Written into the file, if you want that.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Under which licence you share the concept.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of tuning: see mos-client tune --help."),
    ] = None,
    vram: Annotated[float | None, typer.Option("--vram", min=0.1, help="Gigabytes that tuning may take.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, float16, bfloat16.")] = None,
) -> None:
    """Join a federation: tune the concept, take part in rounds, and fetch every model that is published."""
    from mos_client.federation.session import Session
    from mos_client.pictures.folder import split_pictures
    from mos_client.tuning.settings import parse_settings
    from mos_common.kit import read_kit
    from mos_common.names import check_concept_name

    check_concept_name(concept)
    tuned_on, held_back = split_pictures(images)
    opened = read_kit(kit)
    state = state or Path("mos-state") / concept.strip("<>")
    session = Session(
        state=state,
        images=images,
        concept=concept,
        class_word=class_word,
        base=base,
        fingerprint=opened.base,
        steps=steps,
        seed=seed,
        author=author,
        licence=licence,
        device=device,
        dtype=dtype,
        settings=parse_settings(settings or []),
        vram=vram,
    )
    say(
        f"{len(tuned_on)} pictures to tune on, {len(held_back)} held back to score with; none of them leaves this machine"
    )
    from mos_client.federation.join import join as join_federation

    with counting(f"tuning {concept}") as count:
        join_federation(
            session,
            opened,
            rounds=rounds,
            say=say,
            on_step=lambda step: count(step.number, step.total, f"loss {step.loss:.4f}"),
        )


def download(
    kit: KitFile,
    out: Annotated[Path, typer.Option("--out", help="The model gets a folder of its own in here.")] = Path("models"),
    state: Annotated[Path | None, typer.Option("--state", help="The state folder of mos-client join.")] = None,
    model: Annotated[str, typer.Option("--model", help="A round, or the latest.")] = "latest",
) -> None:
    """Fetch a published model and check its signature."""
    from mos_client.federation.download import download_model
    from mos_client.federation.enrolment import enrol
    from mos_common.kit import read_kit

    opened = read_kit(kit)
    if state is None:
        state = _only_state()
    enrolment = enrol(opened, state, say, patient=False)
    with counting("downloading") as count:
        folder = download_model(enrolment, model, out, progress=lambda done, total: count(done, total, "bytes"))
    say(f"{folder}: downloaded and verified")


def _only_state() -> Path:
    found = [folder for folder in Path("mos-state").glob("*") if (folder / "enrolled.json").is_file()]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "there is none in mos-state/"
        raise RequestError(f"give the state folder of mos-client join with --state ({listed})")
    return found[0]
