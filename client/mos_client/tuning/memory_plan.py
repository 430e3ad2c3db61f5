"""Fit a tuning step into GPU memory: micro-batches, gradient checkpointing, an 8-bit optimiser.

The memory of the backward pass is not guessed: one step runs on fake tensors, which have shapes and
no memory, and every tensor that autograd saves is counted while it is alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mos_client.tuning.parameters import initial_pair, trained, tuned_layers
from mos_client.tuning.settings import Method
from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.conditioning import read_prompts
from mos_common.errors import RequestError

GIB = 2**30
WORKSPACE = 1.15  # convolutions and the allocator need somewhat more than is counted
CONTEXT_GIB = 0.6  # CUDA's own share of GPU memory


@dataclass(frozen=True)
class Plan:
    """How a step is run. It changes speed and memory, and the concept by rounding only."""

    micro_batch: int
    checkpointing: bool = False
    eight_bit: bool = False
    gib: float | None = None

    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return AdamW over parameter groups."""
        if self.eight_bit:
            from bitsandbytes.optim import AdamW8bit

            optimiser: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=0.01)
            return optimiser
        return torch.optim.AdamW(groups, weight_decay=0.01, fused=True)

    @contextmanager
    def applied(self, base: Base) -> Iterator[None]:
        """Checkpoint the UNet's activations within the block, if the plan says so."""
        unet: Any = base.unet
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if self.checkpointing:
                unet.disable_gradient_checkpointing()

    def __str__(self) -> str:
        """Return the plan in words."""
        parts = [f"{self.micro_batch} picture{'s' if self.micro_batch > 1 else ''} at a time"]
        parts += ["gradient checkpointing"] * self.checkpointing + ["8-bit AdamW"] * self.eight_bit
        needs = "" if self.gib is None else f", about {self.gib:.1f} GB"
        return ", ".join(parts) + needs


def choose_plan(base: Base, batch: int, rank: int, gib: float) -> Plan:
    """Return the fastest plan to run a batch within `gib` of memory.

    Smaller micro-batches come before checkpointing, which computes most of the UNet twice.

    Raises:
        RequestError: not even one picture at a time with checkpointing fits.

    """
    needs: dict[tuple[int, bool], float] = {}

    def need(micro_batch: int, checkpointing: bool) -> float:
        if (micro_batch, checkpointing) not in needs:
            needs[micro_batch, checkpointing] = step_gib(base, micro_batch, rank, checkpointing)
        return needs[micro_batch, checkpointing]

    # Counting a step takes seconds: what cannot fit is refused by its weights alone, or by the
    # smallest plan, and not after every other plan was counted.
    saved = optimiser_saving_gib(base, rank) if _has_bitsandbytes() else 0.0
    if (least := fixed_gib(base, rank)) - saved > gib or (least := need(1, True)) - saved > gib:
        raise RequestError(
            f"{base.name} needs about {least:.1f} GB to be tuned, one picture at a time with gradient checkpointing; "
            f"{gib:g} GB are too few. "
            "Try --dtype bfloat16, a smaller base, or --device cpu"
        )
    for checkpointing in (False, True):
        for micro_batch in _halves(batch):
            if need(micro_batch, checkpointing) <= gib:
                return Plan(micro_batch, checkpointing, gib=need(micro_batch, checkpointing))
    return Plan(1, checkpointing=True, eight_bit=True, gib=need(1, True) - saved)


def plan_for(base: Base, batch: int, rank: int, vram: float | None) -> Plan:
    """Return the plan for `vram` GB; None: for the GPU's free memory, on a CPU all at once."""
    if vram is None:
        if base.device.type != "cuda":
            return Plan(batch)
        vram = torch.cuda.mem_get_info(base.device)[0] / GIB + _weights_gib(base)
    return choose_plan(base, batch, rank, vram)


def step_gib(base: Base, pictures: int, rank: int, checkpointing: bool) -> float:
    """Return the GiB of a step: weights, saved tensors, pairs with their moments, CUDA's own."""
    return fixed_gib(base, rank) + WORKSPACE * kept_bytes(base, pictures, rank, checkpointing) / GIB


def fixed_gib(base: Base, rank: int) -> float:
    """Return the GiB that no plan saves: weights, pairs with their moments, CUDA's own."""
    context = CONTEXT_GIB if base.device.type == "cuda" else 0.0
    return context + WORKSPACE * _weights_gib(base) + 16 * tuned_parameters(base, rank) / GIB


def kept_bytes(base: Base, pictures: int, rank: int, checkpointing: bool, *, fake: bool = True) -> int:
    """Return the peak bytes that autograd keeps in one step, without weights.

    `fake` runs the step on shapes alone.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [p for module in (base.unet, *base.text_encoders) for p in module.parameters()]
    # Autograd keeps some weights as they are, others as views of their fakes.
    ledger = _Ledger([*weights, *(mode.from_tensor(p) for p in weights)] if fake else weights)
    with (
        mode if fake else nullcontext(),
        Plan(pictures, checkpointing).applied(base),
        torch.autograd.graph.saved_tensors_hooks(ledger.keep, ledger.give),
    ):
        _one_step(base, pictures, rank)
    return ledger.most


def _one_step(base: Base, pictures: int, rank: int) -> None:
    """Run one step, forward and backward, with pairs on all layers and layer-wise words."""
    generator = torch.Generator()
    size = base.picture_size // base.pixels_per_latent
    device = base.device
    words = torch.zeros(base.layout.word_layers, 2, base.word_width, device=device, requires_grad=True)
    layers = tuned_layers(base, Method.ED_LORA)
    pairs = {layer.name: initial_pair(layer, rank, generator) for layer in layers}
    # At worst every picture has its own caption, and each is encoded once for every layer.
    captions = ["photo of a <v>" + " a" * i for i in range(pictures)]
    latents = torch.zeros(pictures, base.latent_channels, size, size, device=device)
    with (
        trained(layers, pairs),
        torch.autocast(device.type, torch.bfloat16, enabled=base.dtype != torch.float32),
    ):
        times = torch.zeros(pictures, dtype=torch.long, device=device)
        with conditioned(base, read_prompts(base, captions, {"<v>": words})) as unet:
            predicted = unet.predict(latents.to(base.dtype), times)
            # Within this block, since the backward pass computes again what was checkpointed.
            torch.autograd.backward(predicted.float().square().mean())


class _Ledger:
    """Counts what autograd keeps alive: each storage once, the base's own weights never."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._alive_as_long = weights  # else fake weights would be made anew, under another address
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._alive: dict[int, tuple[int, int]] = {}
        self._now = self.most = 0

    def keep(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        kept = _Kept(tensor)
        if storage._cdata not in self._weights:
            weakref.finalize(kept, self._release, storage._cdata)
            count, size = self._alive.get(storage._cdata, (0, storage.nbytes()))
            self._now += size if count == 0 else 0
            self._alive[storage._cdata] = (count + 1, size)
            self.most = max(self.most, self._now)
        return kept

    @staticmethod
    def give(kept: _Kept) -> Tensor:
        return kept.tensor

    def _release(self, key: int) -> None:
        count, size = self._alive[key]
        if count == 1:
            self._now -= size
            del self._alive[key]
        else:
            self._alive[key] = (count - 1, size)


class _Kept:
    """Autograd holds this in place of a tensor, so that the ledger notices its release."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _halves(batch: int) -> Iterator[int]:
    while batch > 1:
        yield batch
        batch = (batch + 1) // 2
    yield 1


def _weights_gib(base: Base) -> float:
    modules = [base.unet, *base.text_encoders]
    count: int = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    return count / GIB


def tuned_parameters(base: Base, rank: int) -> int:
    """Return the number of parameters in the low-rank pairs of ED-LoRA."""
    return sum(rank * (layer.d_in + layer.d_out) for layer in tuned_layers(base, Method.ED_LORA))


def optimiser_saving_gib(base: Base, rank: int) -> float:
    """Return the GiB that 8-bit AdamW saves: it keeps 2 bytes per parameter instead of 8."""
    return 6 * tuned_parameters(base, rank) / GIB


def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None
