"""Tune a folder of pictures into a concept file: what `mos-client tune` and a round of the federation both do.

The run's state lies in `work`, written atomically every so many steps; an interrupted run goes on from there and ends in the same
file, to the bit, as one that was never interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from mos_client.pictures.examples import LATENTS, load_examples, load_pictures
from mos_client.pictures.folder import pictures_digest, split_pictures
from mos_client.tuning.checkpoint import restore, run_digest, snapshot
from mos_client.tuning.loop import Step, Tuning
from mos_client.tuning.memory_plan import plan_for
from mos_client.tuning.off_card import resting
from mos_client.tuning.settings import TuningConfig
from mos_client.tuning.watch import Watch, tensorboard
from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes, write_concept
from mos_common.files import check_writable, write_atomically
from mos_common.names import check_concept_name

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
OnStep = Callable[[Step], None]


def tune_folder(
    images: Path,
    *,
    concept: str,
    class_word: str,
    out: Path,
    work: Path,
    base: str | Base = "tiny",
    steps: int | None = None,
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
    vram: float | None = None,
    resume: bool = True,
    author: str = "",
    licence: str = "",
    device: str | None = None,
    dtype: str | None = None,
    logs: Path | None = None,
    on_step: OnStep = lambda step: None,
) -> Path:
    """Tune `concept` on the pictures of `images` (two are held back) and write its concept file to `out`.

    Beside it goes `NAME.progress.png`, what was drawn on the way. `settings` are those of `TuningConfig` by name; `vram` in
    gigabytes is what a step may take; `logs` is a folder for TensorBoard.

    Raises:
        PicturesError, BaseModelError, RequestError, ConceptError, StateError: before anything is tuned, as far as can be known.

    """
    check_concept_name(concept)
    check_writable(out)
    tuned_on, held_back = split_pictures(images)
    loaded = base if isinstance(base, Base) else load_base(base, device=device, dtype=dtype)
    config = TuningConfig.of(loaded.preset, steps=steps, seed=seed, changes=settings)
    plan = plan_for(loaded, config.batch, config.rank, vram)
    if plan.gib is not None:
        log.info("plan: %s", plan)
    examples = load_examples(loaded, tuned_on, crops=config.crops, mirror=config.mirror, cache=work)
    tuning = Tuning(loaded, class_word, examples, config, plan)
    concept_to_bytes(tuned_concept(tuning, concept, author, licence))  # what cannot be written is said now
    watch = None
    if config.watch_every:
        own, held = (load_pictures(pictures, loaded.picture_size) for pictures in (tuned_on, held_back))
        watch = Watch(loaded, class_word, own, held, config.patience)
    before = replace(loaded, fingerprint=loaded.legacy_fingerprint)  # what an earlier release called the base
    run, run_before = (
        run_digest(base, class_word, pictures_digest([*tuned_on, *held_back]), config, plan)
        for base in (loaded, before)
    )
    checkpoint = work / CHECKPOINT
    if resume and restore(tuning, watch, checkpoint, run, run_before):
        log.info("going on from step %d of %d", tuning.done, config.steps)
    with tensorboard(logs) as writer, closing(tuning.steps()) as steps_left, resting(loaded, config) as awake:
        for step in steps_left:
            on_step(step)
            if writer:
                writer.add_scalar("loss", step.loss, step.number)
            last = step.number == step.total
            if watch is not None and (last or step.number % config.watch_every == 0):
                with awake():
                    _look(watch, tuning, out, writer)
                if watch.ready:
                    break
            if not last and step.number % config.checkpoint_every == 0:
                write_atomically(checkpoint, snapshot(tuning, watch, run))
    if watch is not None:
        _choose_best(watch, tuning)
    write_concept(tuned_concept(tuning, concept, author, licence), out)
    for leftover in (checkpoint, work / LATENTS):
        leftover.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
    return out


def tuned_concept(tuning: Tuning, name: str, author: str = "", licence: str = "") -> Concept:
    """What has been tuned so far, as a concept."""
    with tuning.averaged():
        widths = [table.shape[1] for table in tuning.base.token_tables]
        words = () if tuning.words is None else torch.split(tuning.layerwise_words(), widths, dim=2)
        return Concept(
            name=name,
            class_word=tuning.class_word,
            base_fingerprint=tuning.base.fingerprint,
            pairs=tuning.changes(),
            words=tuple(part.clone() for part in words),
            tool_version=f"federated-mix-of-show {version('federated-mix-of-show')}",
            licence=licence,
            author=author,
        )


def progress_picture(out: Path) -> Path:
    """Where the drawings made while tuning `out` are shown."""
    return out.with_suffix(".progress.png")


def _look(watch: Watch, tuning: Tuning, out: Path, writer: object) -> None:
    seen = watch.look(tuning)
    log.info(
        "step %d: identity %.3f, prompt-following %.3f%s",
        *(seen.step, seen.identity, seen.following),
        " (best so far)" if watch.best is seen else "",
    )
    watch.write_grid(progress_picture(out))
    if writer:
        for name in ("identity", "following", "own"):
            writer.add_scalar(name, getattr(seen, name), seen.step)  # type: ignore[attr-defined]


def _choose_best(watch: Watch, tuning: Tuning) -> None:
    """What comes out is the best that was seen."""
    best = watch.best
    assert best is not None
    tuning.averages = [value.to(tuning.base.device) for value in watch.best_values]
    if watch.over_fitted:
        log.warning(
            "over-fitted after step %d: the pictures were being learnt by heart, and the state of step %d is kept",
            best.step,
            best.step,
        )
    elif watch.ready:
        log.info("ready: no look was better than that at step %d, which is kept", best.step)
    elif best.step != tuning.done:
        log.info("the state of step %d was the best and is kept", best.step)
