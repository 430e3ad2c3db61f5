"""The merge methods: one file each, with settings and one function (see `method.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mos_common.errors import RequestError

if TYPE_CHECKING:
    from mos_server.fusion.methods.method import Method, Option

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
    "iso-c",
    "tsv-m",
    "ssr-merge",
    "loraclr",
)


def check_honoured(name: str, given: Iterable[Option]) -> None:
    """Check that a method honours every option that is given.

    Raises:
        RequestError: it ignores one; the message names the methods that do not.

    """
    for option in sorted(set(given) - method_named(name).honours):
        others = ", ".join(other for other in METHODS if option in method_named(other).honours)
        raise RequestError(
            f"method {name} does not use {option}: leave it out (where it is kept, set it back to its default), "
            f"or choose a method that does: {others}"
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
