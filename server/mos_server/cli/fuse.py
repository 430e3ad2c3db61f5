"""`mos-server fuse`: fuse concept files, or what a federation keeps, outside of any round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import RequestError
from mos_common.shell import say


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server fuse cat.safetensors dog.safetensors --out fused")(fuse)


def fuse(
    out: Annotated[Path, typer.Option("--out", help="The fused model's folder; must not exist.")],
    concepts: Annotated[
        list[Path] | None, typer.Argument(help="Concept files; none with --state.", show_default="none")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="Fuse what this federation keeps.", show_default="none")
    ] = None,
    round_id: Annotated[
        str | None,
        typer.Option("--round", help="Of the state: the concepts of this round; default: the newest of all."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Of the state: these concepts alone, such as alice/cat,dog.", show_default="all of them"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="`tiny`, a diffusers folder, or a hub id; the state's own with --state.", show_default="tiny"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="gradient, or a rival: average, sum, ties, dare, custom-diffusion, lbfgs.")
    ] = "gradient",
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", help="How much a concept counts: '<alice/cat>=2'. May be repeated.", show_default="1 each"
        ),
    ] = None,
    ridge: Annotated[float | None, typer.Option("--ridge", help="λ of the equation.", show_default="0.03")] = None,
    ridge_kind: Annotated[
        str | None,
        typer.Option(
            "--ridge-kind", help="trace: λ of the mean second moment; diagonal: of each input's.", show_default="trace"
        ),
    ] = None,
    towards: Annotated[
        float | None,
        typer.Option(
            "--towards", help="The ridge pulls towards so much of the sum of changes; 0: the paper.", show_default="0.5"
        ),
    ] = None,
    preserve: Annotated[
        float | None,
        typer.Option(
            "--preserve",
            help="μ: how much ordinary prompts on the base count against all concepts; 0 is the paper.",
            show_default="1.0",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            help="Text positions that count: words, text, all, graded, or weights 1,1,0.2.",
            show_default="graded",
        ),
    ] = None,
    text_inputs: Annotated[
        str | None,
        typer.Option(
            "--text-inputs", help="Keys and values read the own or the fused text encoder.", show_default="fused"
        ),
    ] = None,
    unet_inputs: Annotated[
        str | None,
        typer.Option(
            "--unet-inputs", help="The rest of the UNet is recorded on own or fused text and keys.", show_default="own"
        ),
    ] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="The empty prompt on each concept's model counts too.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Sampling steps that are recorded.", show_default="20")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="Of that sampling; 0: the base's own.", show_default="the base's own"),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Prompts sampled together.", show_default="16")] = None,
    cap: Annotated[
        float | None,
        typer.Option(
            "--cap", help="Energy, in units of the base's, above which a concept counts less.", show_default="4.0"
        ),
    ] = None,
    sum_weight: Annotated[
        float | None,
        typer.Option("--sum-weight", help="What sum, ties and dare multiply every change with.", show_default="0.6"),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density", help="The share of each change's entries that ties and dare keep.", show_default="0.2"
        ),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            "--moments",
            help="Keep second moments here: an interrupted or a later fusion goes on from them.",
            show_default="kept nowhere",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            help="Record on: auto (every GPU here), N local workers, or a Ray cluster, ray://host:10001.",
            show_default="this process",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: the best there is.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, float16, bfloat16; default: what suits the device.")
    ] = None,
) -> None:
    """Fuse concepts into one model, outside of any round."""
    from mos_server.models.fuse_files import fuse_files, fuse_state, settings_from, weights_from

    given = {
        "ridge": ridge,
        "ridge_kind": ridge_kind,
        "towards": towards,
        "preserve": preserve,
        "rows": rows,
        "text_inputs": text_inputs,
        "unet_inputs": unet_inputs,
        "unconditional": unconditional or None,
        "steps": steps,
        "guidance": guidance,
        "batch": batch,
        "cap": cap,
        "sum_weight": sum_weight,
        "density": density,
    }
    settings, weights = settings_from(method, given), weights_from(weight or [])

    def progress(line: str) -> None:
        say(line, error=True)

    if state is not None:
        if concepts or base or moments:
            raise RequestError(
                "--state brings its own concepts, base and moments: leave the files, --base and --moments out"
            )
        chosen = only.split(",") if only else []
        fused = fuse_state(
            state,
            out,
            round_id=round_id,
            only=chosen,
            settings=settings,
            weights=weights,
            workers=workers,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    elif concepts and only is None and round_id is None:
        fused = fuse_files(
            concepts,
            out,
            base=base or "tiny",
            settings=settings,
            weights=weights,
            workers=workers,
            moments_dir=moments,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    else:
        raise RequestError("nothing to fuse: give concept files, or --state with or without --round and --only")
    for concept in fused.manifest.concepts:
        kept = ", ".join(f"{group} {survival.energy_kept:.3f}" for group, survival in concept.survival.items())
        say(f"{concept.token}  energy kept: {kept}" if kept else concept.token)
    for excluded in fused.manifest.excluded:
        say(f"{excluded.token}  left out: {excluded.reason}")
    if fused.manifest.drift:
        drift = ", ".join(f"{group} {share:.4f}" for group, share in fused.manifest.drift.items())
        say(f"drift of ordinary prompts, as a share of what the layers write: {drift}")
    say(f"{out}: draw with it: mos-client draw {out} 'a photo of {fused.manifest.concepts[0].token}' --out picture.png")
