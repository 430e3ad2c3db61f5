"""Keep the modules of a base in host memory, and one at a time on the device, while it runs.

A module that runs has copies of its weights on the device, which are dropped when another one runs:
weights do not change, so nothing is copied back. What was exchanged meanwhile, as a concept's
weight is when its drawing ends, stays exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mos_common.base_model import Base


class Offload:
    """The modules of a base, which go to `device` when they run; `close` takes the hooks away."""

    def __init__(self, base: Base, device: torch.device) -> None:
        self.device = device
        self.running: nn.Module | None = None
        self._copies: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
        # The VAE is entered by functions of its own: encoding and decoding begin with these parts.
        entries = [(part, part) for part in (*base.text_encoders, base.unet)]
        entries += [(part, base.vae) for part in (base.vae.encoder, base.vae.post_quant_conv, base.vae.decoder) if part]
        for whole in {id(whole): whole for _, whole in entries}.values():
            nn.Module.to(whole, torch.device("cpu"))
        self._hooks = [
            part.register_forward_pre_hook(self._entering(whole), with_kwargs=True, prepend=True)
            for part, whole in entries
        ]
        # Whoever decodes may change the number format of the VAE afterwards: it is at rest by then.
        self._hooks.append(base.vae.decoder.register_forward_hook(lambda _module, _given, _out: self.rest()))

    def rest(self) -> None:
        """Give every module its weights in host memory back."""
        for owner, name, home, copy in self._copies:
            if owner.get(name) is copy:  # else somebody has exchanged it
                owner[name] = home
        self._copies, self.running = [], None

    def close(self) -> None:
        """Leave all modules in host memory, and do no more."""
        self.rest()
        for hook in self._hooks:
            hook.remove()

    def _entering(self, whole: nn.Module) -> Any:
        def enter(_module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Any]:
            if self.running is not whole:
                self.rest()
                self._bring(whole)
            return tuple(self._sent(each) for each in given), {key: self._sent(each) for key, each in named.items()}

        return enter

    def _bring(self, whole: nn.Module) -> None:
        copies: dict[int, Tensor] = {}  # a weight that two layers share stays one
        for module in whole.modules():
            for owner in _tensors_of(module):
                for name, home in owner.items():
                    if home is None:
                        continue
                    if id(home) not in copies:
                        moved = home.to(self.device)
                        copies[id(home)] = (
                            nn.Parameter(moved, requires_grad=False) if isinstance(home, nn.Parameter) else moved
                        )
                    self._copies.append((owner, name, home, copies[id(home)]))
        for owner, name, _, copy in self._copies:
            owner[name] = copy
        self.running = whole

    def _sent(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


def _tensors_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers  # type: ignore[return-value]


def execution_device(gpu_id: int | None, device: str | torch.device | None) -> torch.device | None:
    """Return the device that modules are to run on; None if no accelerator is here."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", gpu_id or 0)
    return torch.device("mps") if torch.backends.mps.is_available() else None
