"""The whole state of a tuning run as one safetensors file: going on from it ends in the same concept, to the bit."""

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
from mos_client.tuning.settings import TuningConfig
from mos_client.tuning.watch import Watch
from mos_common.base_model import Base
from mos_common.digests import bits_of, digest_of_json
from mos_common.errors import StateError

log = logging.getLogger(__name__)


def run_digest(base: Base, class_word: str, pictures: str, config: TuningConfig, plan: Plan) -> str:
    """What a checkpoint belongs to: another base, folder, class word, setting or plan starts anew."""
    how = {"micro_batch": plan.micro_batch, "checkpointing": plan.checkpointing, "eight_bit": plan.eight_bit}
    made_by = {"base": base.fingerprint, "class_word": class_word, "pictures": pictures, "config": asdict(config)}
    return digest_of_json(made_by | {"plan": how, "dtype": str(base.dtype)})


def snapshot(tuning: Tuning, watch: Watch | None, run: str) -> bytes:
    """Parameters, their average, the optimiser's moments, generator, steps done, and what was seen on the way."""
    tensors: dict[str, Tensor] = {"generator": tuning.generator.get_state()}
    for i, (parameter, average) in enumerate(zip(tuning.parameters, tuning.averages, strict=True)):
        tensors[f"{i}.value"], tensors[f"{i}.average"] = parameter.detach(), average
        for key, value in tuning.optimiser.state.get(parameter, {}).items():
            tensors[f"{i}.state.{key}"] = value
    looks = "[]"
    if watch is not None:
        looks, seen = watch.state()
        tensors |= {f"watch.{name}": tensor for name, tensor in seen.items()}
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = _digest(tensors, run, tuning.done, looks)
    return save(tensors, {"run": run, "done": str(tuning.done), "looks": looks, "digest": digest})


def restore(tuning: Tuning, watch: Watch | None, checkpoint: Path, *runs: str) -> bool:
    """Go back to a saved state; return False where there is none, or it is of another run, or damaged.

    `runs` are the digests by which this run is known, today's and an earlier release's.

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
        saved_run, done, looks = metadata["run"], int(metadata["done"]), metadata["looks"]
        whole = metadata["digest"] == _digest(tensors, saved_run, done, looks)
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
        watch.restore(looks, {n.removeprefix("watch."): t for n, t in tensors.items() if n.startswith("watch.")})
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


def _digest(tensors: Mapping[str, Tensor], run: str, done: int, looks: str) -> str:
    """Sha256 over everything a checkpoint holds: a bit that fell over on the disk is no state to go on from."""
    # Not `digest_of_tensors`: checkpoints of earlier releases are gone on from, and these are the bytes of their digests.
    digest = hashlib.sha256(f"{run}\0{done}\0{looks}\0".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bits_of(tensor))
    return digest.hexdigest()
