"""The merge methods: one file each, with its settings and one function (`method.py` says which)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mos_common.errors import RequestError

if TYPE_CHECKING:
    from mos_server.fusion.methods.method import Method

# As `--method` spells them; the file of each has its name, with _ for -.
# A new method is its file and one line here.
METHODS = (
    "gradient",
    "average",
    "sum",
    "ties",
    "dare",
    "custom-diffusion",
    "lbfgs",
)


def method_named(name: str) -> Method[Any]:
    """Return the method of this name; only its own file is imported.

    Raises:
        RequestError: the name is unknown.

    """
    if name not in METHODS:
        raise RequestError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    found: Method[Any] = import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return found
