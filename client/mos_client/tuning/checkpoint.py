"""The whole state of a tuning run as one safetensors file; a resumed run ends in the same bits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mos_client.tuning.loop import Tuning
from mos_client.tuning.memory_plan import Plan
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.watch import Watch
from mos_common.base_model import Base
from mos_common.digests import bits_of, digest_of_json
from mos_common.errors import StateError

log = logging.getLogger(__name__)
EVALUATIONS = "looks"  # their name in the file since 0.1.0


def run_digest(base: Base, class_word: str, pictures: str, settings: TuningSettings, plan: Plan) -> str:
    """Return the digest of what a run depends on: base, pictures, class word, settings, plan."""
    steps = {"micro_batch": plan.micro_batch, "checkpointing": plan.checkpointing, "eight_bit": plan.eight_bit}
    made_by = {"base": base.fingerprint, "class_word": class_word, "pictures": pictures, "config": asdict(settings)}
    return digest_of_json(made_by | {"plan": steps, "dtype": str(base.dtype)})


def snapshot(tuning: Tuning, watch: Watch | None, run: str) -> bytes:
    """Return parameters, averages, the optimiser's moments, generator, steps and evaluations."""
    tensors: dict[str, Tensor] = {"generator": tuning.generator.get_state()}
    for i, (parameter, average) in enumerate(zip(tuning.parameters, tuning.averages, strict=True)):
        tensors[f"{i}.value"], tensors[f"{i}.average"] = parameter.detach(), average
        for key, value in tuning.optimiser.state.get(parameter, {}).items():
            tensors[f"{i}.state.{key}"] = value
    evaluations = "[]"
    if watch is not None:
        evaluations, drawings = watch.state()
        tensors |= {f"watch.{name}": tensor for name, tensor in drawings.items()}
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = _digest(tensors, run, tuning.done, evaluations)
    return save(tensors, {"run": run, "done": str(tuning.done), EVALUATIONS: evaluations, "digest": digest})


def restore(tuning: Tuning, watch: Watch | None, checkpoint: Path, *runs: str) -> bool:
    """Return True and go back to a saved state of the same run, or False if there is no usable one.

    `runs` are the digests by which this run is known: today's and an earlier release's.

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
        saved_run, done, evaluations = metadata["run"], int(metadata["done"]), metadata[EVALUATIONS]
        whole = metadata["digest"] == _digest(tensors, saved_run, done, evaluations)
    except (SafetensorError, ValueError, KeyError):
        whole = False
    if not whole:
        log.warning("checkpoint %s is damaged: tuning starts anew", checkpoint)
        return False
    if saved_run not in runs:
        log.warning("checkpoint %s belongs to other pictures or settings: tuning starts anew", checkpoint)
        return False
    _take_over(tuning, tensors)
    tuning.done = done
    if watch is not None:
        watch.restore(evaluations, {n.removeprefix("watch."): t for n, t in tensors.items() if n.startswith("watch.")})
    return True


@torch.no_grad()
def _take_over(tuning: Tuning, tensors: Mapping[str, Tensor]) -> None:
    tuning.generator.set_state(tensors["generator"])
    for i, (parameter, average) in enumerate(zip(tuning.parameters, tuning.averages, strict=True)):
        parameter.copy_(tensors[f"{i}.value"])
        average.copy_(tensors[f"{i}.average"])
        prefix = f"{i}.state."
        state = tuning.optimiser.state[parameter]
        for name, value in tensors.items():
            if name.startswith(prefix):
                state[name.removeprefix(prefix)] = value.to(parameter.device)


def _digest(tensors: Mapping[str, Tensor], run: str, done: int, evaluations: str) -> str:
    """Return the SHA-256 of a checkpoint's content: a file with a flipped bit is not resumed."""
    # Not `digest_of_tensors`: checkpoints of earlier releases are resumed, with digests like this.
    digest = hashlib.sha256(f"{run}\0{done}\0{evaluations}\0".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bits_of(tensor))
    return digest.hexdigest()
