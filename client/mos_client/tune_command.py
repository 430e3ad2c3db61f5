"""Tune a folder of pictures into a concept file: what `mos-client tune` and a round of the federation both do.

The run's state lies in `work` as safetensors, written atomically every so many steps; an interrupted run goes on from there and
ends in the same file, to the bit, as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mos_client.config import TuningConfig
from mos_client.dataset import load_examples, pictures_digest, split_pictures
from mos_client.tuning import Step, Tuning
from mos_common.base_model import BaseModel, load_base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes, write_concept
from mos_common.errors import StateError
from mos_common.files import canonical_json, check_writable, write_atomically
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
    base: str | BaseModel = "tiny",
    steps: int | None = None,
    seed: int = 0,
    resume: bool = True,
    author: str = "",
    licence: str = "",
    device: str | None = None,
    dtype: str | None = None,
    on_step: OnStep = lambda step: None,
) -> Path:
    """Tune `concept` on the pictures of `images` (two are held back) and write its concept file to `out`.

    Raises:
        PicturesError, BaseModelError, RequestError, ConceptError, StateError: before anything is tuned, as far as can be known.

    """
    check_concept_name(concept)
    tuned_on, _ = split_pictures(images)
    loaded = base if isinstance(base, BaseModel) else load_base(base, device=device, dtype=dtype)
    config = TuningConfig.of(loaded.preset, steps=steps, seed=seed)
    tuning = Tuning(loaded, class_word, load_examples(loaded, tuned_on), config)
    concept_to_bytes(tuned_concept(tuning, concept, class_word, author, licence))  # what cannot be written is said now
    check_writable(out)
    run = run_digest(loaded, class_word, pictures_digest(tuned_on), config)
    checkpoint = work / CHECKPOINT
    if resume and restore(tuning, checkpoint, run):
        log.info("going on from step %d of %d", tuning.done, config.steps)
    with closing(tuning.steps()) as steps_left:  # whatever happens, the base is as it was
        for step in steps_left:
            on_step(step)
            if step.number % config.checkpoint_every == 0 and step.number < step.total:
                write_atomically(checkpoint, snapshot(tuning, run))
    write_concept(tuned_concept(tuning, concept, class_word, author, licence), out)
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
    return out


def tuned_concept(tuning: Tuning, name: str, class_word: str, author: str = "", licence: str = "") -> Concept:
    """What has been tuned so far, as a concept."""
    return Concept(
        name=name,
        class_word=class_word,
        base_fingerprint=tuning.base.fingerprint,
        pairs=tuning.changes(),
        words=(tuning.words.detach().cpu(),),
        tool_version=f"federated-mix-of-show {version('federated-mix-of-show')}",
        licence=licence,
        author=author,
    )


def run_digest(base: BaseModel, class_word: str, pictures: str, config: TuningConfig) -> str:
    """What a checkpoint belongs to: another base, folder, class word or setting starts anew."""
    made_by = {"base": base.fingerprint, "class_word": class_word, "pictures": pictures, "config": asdict(config)}
    return hashlib.sha256(canonical_json(made_by)).hexdigest()


def snapshot(tuning: Tuning, run: str) -> bytes:
    """The whole state of a run: parameters, AdamW's moments, generator, steps done."""
    tensors: dict[str, Tensor] = {"generator": tuning.generator.get_state()}
    for i, parameter in enumerate(_parameters(tuning)):
        tensors[f"{i}.value"] = parameter.detach().cpu().contiguous()
        for key, value in tuning.optimiser.state.get(parameter, {}).items():
            tensors[f"{i}.{key}"] = value.detach().cpu().contiguous()
    return save(tensors, {"run": run, "done": str(tuning.done), "digest": _digest(tensors, run, tuning.done)})


def restore(tuning: Tuning, checkpoint: Path, run: str) -> bool:
    """Go back to a saved state of the same run; False where there is none (or it is of another run, or damaged).

    Raises:
        StateError: it is there and cannot be read.

    """
    try:
        data = checkpoint.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(f"checkpoint {checkpoint} cannot be read: {error.strerror}") from error
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        saved_run, done = metadata["run"], int(metadata["done"])
        whole = metadata["digest"] == _digest(tensors, saved_run, done)
    except (SafetensorError, ValueError, KeyError):
        whole = False
    if not whole:
        log.warning("checkpoint %s is damaged: tuning starts anew", checkpoint)
        return False
    if saved_run != run:
        log.warning("checkpoint %s belongs to other pictures or settings: tuning starts anew", checkpoint)
        return False
    tuning.generator.set_state(tensors["generator"])
    tuning.done = done
    with torch.no_grad():
        for i, parameter in enumerate(_parameters(tuning)):
            parameter.copy_(tensors[f"{i}.value"])
            state = tuning.optimiser.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                saved = tensors[f"{i}.{key}"]
                state[key] = saved if key == "step" else saved.to(parameter.device)
    return True


def _digest(tensors: Mapping[str, Tensor], run: str, done: int) -> str:
    """Sha256 over everything a checkpoint holds: a bit that fell over on the disk is no state to go on from."""
    digest = hashlib.sha256(f"{run}\0{done}\0".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parameters(tuning: Tuning) -> list[Tensor]:
    return [parameter for group in tuning.optimiser.param_groups for parameter in group["params"]]
