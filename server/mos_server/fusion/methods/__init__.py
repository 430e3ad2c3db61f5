"""The merge methods: one file each, with settings and one function (see `method.py`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mos_common.errors import RequestError

if TYPE_CHECKING:
    from mos_server.fusion.methods.method import Method

# Names as in `--method`; the file of each has the same name, with _ for -. A new method is a file
# and one line here.
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
    method: Method[Any] = import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return method
