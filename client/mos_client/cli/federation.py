"""The participant's commands of the federation: join, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_client.cli.options import Author, ClassWord, Concept, Images, Licence, Mark, Settings, Vram
from mos_client.tuning.settings import TuningSettings, tuning_texts
from mos_common.errors import PicturesError, RequestError
from mos_common.options import Base, Device, Dtype, Seed, TuningSteps
from mos_common.shell import counting, lists_settings, say

OneState = Annotated[
    Path | None,
    typer.Option("--state", help="The state folder of mos-client join.", show_default="the only one in mos-state"),
]
KitFile = Annotated[Path, typer.Argument(metavar="KIT", help="The file that the operator sent.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-client`."""
    example = 'Example: mos-client join alice.kit pictures/ --concept "<cat>" --class cat'
    app.command(cls=lists_settings(lambda: TuningSettings), epilog=example)(join)
    app.command(epilog="Example: mos-client download alice.kit --state mos-state/cat --out model")(download)
    app.command(epilog="Example: mos-client status --state mos-state/cat")(status)
    app.command(epilog="Example: mos-client withdraw --state mos-state/cat")(withdraw)
    app.command("open", epilog="Example: mos-client open alice.kit")(open_)


def join(
    kit: KitFile,
    images: Images,
    concept: Concept,
    class_word: ClassWord,
    mark: Mark = None,
    base: Base = "tiny",
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="Folder for keys, settings, the concept file and models.",
            show_default="mos-state/NAME here",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", min=1, help="Stop after this many published models.", show_default="run until stopped"
        ),
    ] = None,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Tune what this command says, though the state folder is for another concept or pictures."
        ),
    ] = False,
    fused_only: Annotated[
        bool,
        typer.Option(
            "--fused-only",
            help="Refuse that your concept's own spatial changes are published, where the federation does that.",
        ),
    ] = False,
    tune_only: Annotated[
        bool, typer.Option("--tune-only", help="Tune, show what would leave, and end: the server is not called.")
    ] = False,
    ask: Annotated[
        bool,
        typer.Option("--ask", help="Send no concept file before you have agreed to its bytes, in mos-client open."),
    ] = False,
    steps: TuningSteps = None,
    seed: Seed = 0,
    author: Author = "",
    licence: Licence = "",
    settings: Settings = None,
    vram: Vram = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Join a federation: tune the concept, take part in rounds, fetch every published model."""
    from mos_client.federation.session import Session
    from mos_client.tuning.request import TuneRequest
    from mos_common.kit import read_kit

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
        settings=tuning_texts(settings or []),
        vram=vram,
        mark=mark,
    )
    opened = read_kit(kit)
    agreed = opened.publishes == "own" and not fused_only
    session = Session(state or Path("mos-state") / concept.strip("<>"), opened.base, request, agreed)
    try:
        tuned_on, held_back = request.pictures()
    except PicturesError:
        if not session.has_concepts:  # else it is answered without them
            raise
    else:
        counts = f"{len(tuned_on)} pictures to tune on, {len(held_back)} held back for scoring"
        say(f"{counts}; none of them leaves this machine")
    from mos_client.federation.join import join as join_federation

    with counting(f"tuning {concept}") as count:
        join_federation(
            session,
            opened,
            rounds=rounds,
            say=say,
            on_step=lambda step: count(step.number, step.total, f"loss {step.loss:.4f}"),
            anew=anew,
            tune_only=tune_only,
            ask=ask,
        )


def download(
    kit: KitFile,
    out: Annotated[Path, typer.Option("--out", help="Folder to put the model's folder in.")] = Path("models"),
    state: Annotated[
        Path | None,
        typer.Option("--state", help="The state folder of mos-client join.", show_default="the only one in mos-state"),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The round that made it, such as round-3.")] = "latest",
    own: Annotated[
        bool, typer.Option("--own", help="Fetch the concepts' own spatial changes too, as far as they are published.")
    ] = False,
) -> None:
    """Fetch a published model and check its signature."""
    from mos_client.federation.download import download_model, download_own
    from mos_client.federation.enrolment import enrol, read_enrolment
    from mos_client.federation.following import followed
    from mos_common.kit import read_kit

    opened = read_kit(kit)
    if state is None:
        state = _only_state()
    read_enrolment(state)  # a folder that has not joined would use up the kit
    enrolment = followed(enrol(opened, state, say, patient=False), state, say)
    with counting("downloading") as count:
        folder = download_model(enrolment, model, out, progress=lambda done, total: count(done, total, "bytes"))
        fetched = download_own(enrolment, folder) if own else {}
    say(f"{folder}: downloaded and verified")
    for token, outcome in fetched.items():
        say(f"own changes of {token}: {outcome}")
    if own and not fetched:
        say("no own changes are published beside it")


def status(state: OneState = None) -> None:
    """Show how it stands: tuning, what you agreed to, the round and who is waited for, scores.

    It is read from the state folder, so it works while join runs, and without a network.
    """
    from mos_client.federation.session import Session
    from mos_client.federation.status import status_of

    for line in status_of(Session.load(state or _only_state())):
        say(line)


def withdraw(state: OneState = None) -> None:
    """Have the server erase your concept, and leave it out from now on.

    Models that were published with it stay as they are. It is tuned again to take part again.
    """
    from mos_client.federation.enrolment import read_enrolment
    from mos_client.federation.following import followed
    from mos_client.federation.leaving import withdraw_concept
    from mos_client.federation.session import Session

    session = Session.load(state or _only_state())
    enrolment = followed(read_enrolment(session.state), session.state, say)
    for line in withdraw_concept(session, enrolment):
        say(line)


def open_(
    kit: Annotated[
        Path | None,
        typer.Argument(metavar="[KIT]", help="The file that the operator sent.", show_default="chosen on the page"),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="The state folder of mos-client join.", show_default="those in mos-state here"),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine.", show_default="a free one")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the browser, or only print the address.")
    ] = True,
) -> None:
    """Open the page in the browser: from the kit to pictures, without typing commands.

    It listens on this machine alone. The address holds a secret: anyone who has it can act for you.
    """
    from mos_client.page.application import serve_page

    serve_page(Path("mos-state"), state, kit, port=port, browser=browser, say=say)


def _only_state() -> Path:
    folders = [folder for folder in Path("mos-state").glob("*") if (folder / "enrolled.json").is_file()]
    if len(folders) != 1:
        listed = ", ".join(map(str, folders)) or "mos-state/ has none"
        raise RequestError(f"give the state folder of mos-client join with --state ({listed})")
    return folders[0]
