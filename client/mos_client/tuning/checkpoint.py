"""The whole state of a tuning run as one safetensors file; a resumed run ends in the same bits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from mos_common.files import could_not_write

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
KEPT = 3  # checkpoints of other settings that are kept beside the run's own
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


def restore(tuning: Tuning, watch: Watch | None, work: Path, *runs: str) -> bool:
    """Return True and go back to the saved state of the same run in `work`, or False without one.

    `runs` are the digests by which this run is known: today's and an earlier release's. The
    checkpoint of a run with other pictures or settings is put aside, and resumed when they return.

    Raises:
        StateError: one is there and cannot be read.

    """
    checkpoint = work / CHECKPOINT
    saved = _read(checkpoint)
    if saved is not None and saved.run not in runs:
        _put_aside(checkpoint, saved)
        saved = None
    for run in runs if saved is None else ():
        if (saved := _read(_aside(work, run))) is not None:
            _aside(work, run).replace(checkpoint)
            break
    if saved is None or saved.run not in runs:
        return False
    _take_over(tuning, saved.tensors)
    tuning.done = saved.done
    if watch is not None:
        prefix = "watch."
        drawings = {n.removeprefix(prefix): t for n, t in saved.tensors.items() if n.startswith(prefix)}
        watch.restore(saved.evaluations, drawings)
    return True


@dataclass(frozen=True)
class _Saved:
    run: str
    done: int
    evaluations: str
    tensors: Mapping[str, Tensor]


def _read(checkpoint: Path) -> _Saved | None:
    """Return what a checkpoint has, or None if it is not there, or damaged.

    Raises:
        StateError: it is there and cannot be read.

    """
    try:
        data = checkpoint.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"checkpoint {checkpoint} cannot be read: {error.strerror}") from error
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        saved = _Saved(metadata["run"], int(metadata["done"]), metadata[EVALUATIONS], tensors)
        if metadata["digest"] == _digest(tensors, saved.run, saved.done, saved.evaluations):
            return saved
    except (SafetensorError, ValueError, KeyError):
        pass
    log.warning("checkpoint %s is damaged: tuning starts anew", checkpoint)
    return None


def _put_aside(checkpoint: Path, saved: _Saved) -> None:
    """Keep a checkpoint that belongs to another run, and no more than `KEPT` of them.

    Raises:
        StateError: it cannot be renamed.

    """
    aside = _aside(checkpoint.parent, saved.run)
    log.warning(
        "checkpoint %s (step %d) belongs to other pictures or settings: tuning starts anew. It is kept as %s, and "
        "resumed when they are given again",
        *(checkpoint, saved.done, aside.name),
    )
    try:
        checkpoint.replace(aside)
        aside.touch()
        kept = sorted(
            checkpoint.parent.glob(_aside(checkpoint.parent, "*").name), key=lambda path: path.stat().st_mtime
        )
        for oldest in kept[:-KEPT]:
            log.warning("checkpoint %s is the oldest of more than %d that are kept: it is removed", oldest, KEPT)
            oldest.unlink()
    except OSError as error:
        raise could_not_write(aside, error) from error


def _aside(work: Path, run: str) -> Path:
    return work / f"checkpoint-{run[:16]}.safetensors"


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
