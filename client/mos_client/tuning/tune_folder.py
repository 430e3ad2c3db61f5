"""Tune a folder of pictures into a concept file, for `mos-client tune` and for rounds.

The run's state lies in `work`, written atomically at regular intervals; an interrupted run resumes
from it and ends in the same file, to the bit, as one that was never interrupted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mos_client.pictures.examples import LATENTS, load_examples, load_pictures
from mos_client.pictures.folder import pictures_digest
from mos_client.tuning.checkpoint import CHECKPOINT, restore, run_digest, snapshot
from mos_client.tuning.judgement import Judged, judge
from mos_client.tuning.loop import Step, Tuning
from mos_client.tuning.offloading import offloaded
from mos_client.tuning.pace import Pace
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.steering import Steering
from mos_client.tuning.watch import Watch, check_tensorboard, tensorboard
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes, write_concept
from mos_common.files import write_atomically

log = logging.getLogger(__name__)
OnStep = Callable[[Step], None]


def tune_folder(
    request: TuneRequest,
    out: Path,
    *,
    work: Path,
    base: Base | None = None,
    judged: Judged | None = None,
    resume: bool = True,
    logs: Path | None = None,
    on_step: OnStep = lambda step: None,
    steering: Steering | None = None,
) -> Path:
    """Tune the concept of `request` on its pictures, less two held back, and write it to `out`.

    Beside it go `NAME.progress.png`, the drawings made while tuning, and their scores in
    `NAME.progress.json`. `base` is the request's base model where the caller has loaded it already,
    `judged` the judgement of just this tuning; `logs` is a folder for TensorBoard.

    Raises:
        MosError: as `judge` raises, before anything is tuned.
        RequestError: `steering` says to stop; a later run goes on from there.
        ConceptError: the loss is not finite.
        StateError: a file cannot be written any more.

    """
    if logs is not None:
        check_tensorboard(logs)
    judged = judged or judge(request, out, work, base=base)
    base, settings, plan = judged.base, judged.settings, judged.plan
    tuned_on, held_back = judged.tuned_on, judged.held_back
    for remark in judged.remarks:
        log.warning("%s", remark)
    if plan.gib is not None:
        log.info("plan: %s", plan)
    examples = load_examples(base, tuned_on, crops=settings.crops, mirror=settings.mirror, cache=work)
    tuning = Tuning(base, request.class_word, examples, settings, plan)
    concept_to_bytes(_concept(tuning, request))  # raises now if the finished file could not be written
    watch = None
    if settings.watch_every:
        own, held = (load_pictures(pictures, base.picture_size) for pictures in (tuned_on, held_back))
        watch = Watch(base, request.class_word, own, held, settings.patience)
    before = replace(base, fingerprint=base.legacy_fingerprint)  # the base as an earlier release knew it
    run, run_before = (
        run_digest(each, request.class_word, pictures_digest([*tuned_on, *held_back]), settings, plan)
        for each in (base, before)
    )
    if resume and restore(tuning, watch, work, run, run_before):
        log.info("resuming from step %d of %d", tuning.done, settings.steps)
    pace = Pace(settings, plan)

    def save() -> None:
        write_atomically(work / CHECKPOINT, snapshot(tuning, watch, run))

    with tensorboard(logs) as writer, closing(tuning.steps()) as steps, offloaded(base, settings) as on_gpu:
        for step in steps:
            on_step(step)
            pace.tell(step)
            if writer:
                writer.add_scalar("loss", step.loss, step.number)
            last = step.number == step.total
            if watch is not None and (last or step.number % settings.watch_every == 0):
                with on_gpu():
                    _evaluate(watch, tuning, out, writer)
                if watch.finished:
                    break
            if not last:
                _keep(step.number, settings.checkpoint_every, save, steering)
    if watch is not None:
        _choose_best(watch, tuning)
    write_concept(_concept(tuning, request), out)
    for leftover in (work / CHECKPOINT, work / LATENTS):
        leftover.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
    return out


def _keep(step: int, every: int, save: Callable[[], None], steering: Steering | None) -> None:
    """Write a checkpoint if it is time for one, and do what the run's owner wants."""
    if step % every == 0:
        save()
    if steering is not None:
        steering.obey(step, save)


def _concept(tuning: Tuning, request: TuneRequest) -> Concept:
    return tuned_concept(tuning, request.concept, request.author, request.licence)


def tuned_concept(tuning: Tuning, name: str, author: str = "", licence: str = "") -> Concept:
    """Return the concept that has been tuned so far."""
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
    """Return the path of the drawings made while tuning `out`."""
    return out.with_suffix(".progress.png")


def progress_scores(out: Path) -> Path:
    """Return the path of those drawings' scores: a list of evaluations, and the best's step."""
    return out.with_suffix(".progress.json")


def _evaluate(watch: Watch, tuning: Tuning, out: Path, writer: Any) -> None:
    evaluation = watch.evaluate(tuning)
    log.info(
        "step %d: identity %.3f, prompt adherence %.3f%s",
        *(evaluation.step, evaluation.identity, evaluation.prompt_adherence),
        " (best so far)" if watch.best is evaluation else "",
    )
    watch.write_grid(progress_picture(out))
    scores = {"best": watch.best and watch.best.step, "evaluations": [asdict(each) for each in watch.evaluations]}
    write_atomically(progress_scores(out), json.dumps(scores).encode())
    if writer:
        for name in ("identity", "prompt_adherence", "own"):
            writer.add_scalar(name, getattr(evaluation, name), evaluation.step)


def _choose_best(watch: Watch, tuning: Tuning) -> None:
    """Put the parameters of the best evaluation into the tuning."""
    best = watch.best
    assert best is not None
    tuning.averages = [value.to(tuning.base.device) for value in watch.best_values]
    if watch.over_fitted:
        log.warning(
            "overfitting after step %d: tuning began to memorise the pictures; the state of step %d is kept",
            best.step,
            best.step,
        )
    elif watch.finished:
        log.info("finished: no later evaluation was better than that at step %d, which is kept", best.step)
    elif best.step != tuning.done:
        log.info("the state of step %d was the best and is kept", best.step)
