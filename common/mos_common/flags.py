"""Types of command line flags that refuse what no command can use: seeds and finite numbers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import click

from mos_common.errors import RequestError

if TYPE_CHECKING:
    _Integer = click.ParamType[int]
    _Float = click.ParamType[float]
else:
    _Integer = _Float = click.ParamType  # not subscriptable before click 8.2

MOST_SEED = 2**63 - 1  # torch takes these as they are, and stored settings have them as numbers


def check_seed(seed: int, flag: str = "--seed") -> int:
    """Return the seed if a command may be given it.

    Raises:
        RequestError: it is negative or too large.

    """
    if seed == -1:
        raise RequestError(
            f"{flag} -1: other tools take it for a random seed, here every seed gives the same result again; "
            f"expected a whole number from 0 to {MOST_SEED}"
        )
    if not 0 <= seed <= MOST_SEED:
        raise RequestError(f"{flag} {seed}: expected a whole number from 0 to {MOST_SEED}")
    return seed


class SeedType(_Integer):
    """A random seed: a whole number that every generator takes."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number.

        Raises:
            RequestError: it is not a seed; the command then ends with one line.

        """
        if not re.fullmatch(r"[+-]?\d{1,40}", str(value).strip()):
            raise RequestError(f"{_flag(param)} {value}: expected a whole number from 0 to {MOST_SEED}")
        return check_seed(int(str(value)), _flag(param))


class FiniteType(_Float):
    """A number within a range; "nan" and "inf" are none."""

    name = "float"

    def __init__(self, least: float | None = None, most: float | None = None) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number.

        Raises:
            RequestError: it is no number, not finite, or outside the range.

        """
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        low, high = (-math.inf if self.least is None else self.least), (math.inf if self.most is None else self.most)
        if not (math.isfinite(number) and low <= number <= high):
            least = "" if self.least is None else f" from {self.least:g}"
            most = "" if self.most is None else f" to {self.most:g}"
            raise RequestError(f"{_flag(param)} {value}: expected a finite number{least}{most}")
        return number


def _flag(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None and param.opts else "the number"
