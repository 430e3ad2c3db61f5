"""`mos-server fuse`: fuse concept files, or the concepts of a federation, outside any round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mos_common.commands import draw_command
from mos_common.errors import RequestError
from mos_common.options import Device, Dtype
from mos_common.settings import flag_texts
from mos_common.shell import say
from mos_server.cli.settings import (
    KeepAll,
    ListsSettings,
    MethodName,
    Preserve,
    Published,
    Ridge,
    Sets,
    Weights,
    Workers,
)

if TYPE_CHECKING:
    from mos_common.fused_model import FusedModel


Out = Annotated[Path, typer.Option("--out", help="The fused model's folder; must not exist yet.")]
ConceptFiles = Annotated[
    list[Path] | None, typer.Argument(help="Concept files; none with --state.", show_default="none")
]
StateFolder = Annotated[
    Path | None, typer.Option("--state", help="Fuse the concepts of this federation.", show_default="none")
]
RoundId = Annotated[
    str | None,
    typer.Option("--round", help="With --state: the concepts of this round; default: the newest of all."),
]
Only = Annotated[
    str | None,
    typer.Option("--only", help="With --state: only these concepts, such as alice/cat,dog.", show_default="all"),
]
BaseName = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The base model: `tiny`, a folder, a checkpoint file, or a hub id.",
        show_default="tiny; with --state: its own",
    ),
]
MomentsFolder = Annotated[
    Path | None,
    typer.Option(
        "--moments",
        help="Keep second moments here: an interrupted or later fusion resumes from them.",
        show_default="not kept",
    ),
]
Publish = Annotated[
    Published,
    typer.Option(
        "--publish",
        help="`own`: write each concept's own spatial changes beside the model too, for drawing where it is named; "
        "with --state, of those whose participants agreed.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(cls=ListsSettings, epilog="Example: mos-server fuse cat.safetensors dog.safetensors --out fused")(fuse)


def fuse(
    out: Out,
    concepts: ConceptFiles = None,
    state: StateFolder = None,
    round_id: RoundId = None,
    only: Only = None,
    base: BaseName = None,
    method: MethodName = None,
    sets: Sets = None,
    weight: Weights = None,
    ridge: Ridge = None,
    preserve: Preserve = None,
    moments: MomentsFolder = None,
    workers: Workers = None,
    keep_all: KeepAll = False,
    publish: Publish = Published.FUSED,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Fuse concepts into one model, outside any round.

    With --state the settings are those of the federation (with --round: of that round); flags of
    this command override them.
    """
    from mos_server.fusion.methods import check_honoured
    from mos_server.fusion.methods.method import Option
    from mos_server.fusion.settings import FusionSettings
    from mos_server.models.fuse_files import fuse_files, fuse_state, kept_settings
    from mos_server.state.folder import open_state

    chosen = only.split(",") if only else []
    before = kept_settings(state, round_id, chosen) if state is not None else FusionSettings()
    settings = before.changed(
        method=method,
        texts=flag_texts(sets, ridge=ridge, preserve=preserve),
        weights=weight or (),
        workers=workers,
        keep_all=keep_all,
    )

    def progress(line: str) -> None:
        say(line, error=True)

    if state is not None:
        if concepts or base or moments:
            raise RequestError(
                "--state brings its own concepts, base and moments: leave the files, --base and --moments out"
            )
        fused = fuse_state(
            state,
            out,
            round_id=round_id,
            only=chosen,
            settings=settings,
            device=device,
            dtype=dtype,
            own=publish is Published.OWN,
            progress=progress,
        )
    elif concepts and only is None and round_id is None:
        if moments is not None:
            check_honoured(settings.of_method.method, [Option.MOMENTS])
        fused = fuse_files(
            concepts,
            out,
            base=base or "tiny",
            settings=settings,
            moments_dir=moments,
            device=device,
            dtype=dtype,
            own=publish is Published.OWN,
            progress=progress,
        )
    else:
        raise RequestError("nothing to fuse: give concept files, or --state (with --round or --only, if you like)")
    _report(fused, out, base or (open_state(state).config.base if state else "tiny"))


def _report(fused: FusedModel, out: Path, base: str) -> None:
    from mos_server.models.worst_influences import worst_influences

    for concept in fused.manifest.concepts:
        kept = ", ".join(f"{group} {survival.energy_kept:.3f}" for group, survival in concept.survival.items())
        say(f"{concept.token}  energy kept: {kept}" if kept else concept.token)
    for line in worst_influences(fused.manifest.model_dump()):
        say(line)
    for excluded in fused.manifest.excluded:
        say(f"{excluded.token}  left out: {excluded.reason}")
    if fused.manifest.drift:
        drift = ", ".join(f"{group} {share:.4f}" for group, share in fused.manifest.drift.items())
        say(f"drift of ordinary prompts, as a share of the layers' outputs: {drift}")
    say(f"{out}: draw with it: {draw_command(out, f'a photo of {fused.manifest.concepts[0].token}', base)}")
