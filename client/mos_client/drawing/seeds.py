"""The seeds of a drawing, from `--seed`, `--count` and `--seeds`."""

from __future__ import annotations

import re

from mos_common.errors import RequestError
from mos_common.flags import check_seed
from mos_common.recipes import MOST_PICTURES

_RANGE = re.compile(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?")


def seeds_of(seed: int = 0, count: int | None = None, seeds: str | None = None) -> tuple[int, ...]:
    """Return the seeds: one, `count` in a row from it, or those that `seeds` lists.

    Raises:
        RequestError: the flags exclude each other, or are too many, or a seed is none or there
            twice.

    """
    if seeds is None:
        if count is not None and not 1 <= count <= MOST_PICTURES:
            raise RequestError(f"--count {count}: expected 1 to {MOST_PICTURES}")
        return tuple(check_seed(seed + i) for i in range(count or 1))
    if count is not None or seed:
        raise RequestError("--seeds says which pictures are drawn: leave out --count and --seed")
    return listed_seeds(seeds, "--seeds")


def listed_seeds(seeds: str, name: str) -> tuple[int, ...]:
    """Return the seeds of a list such as "0-3,7", which is the value of `name`.

    Raises:
        RequestError: it is no such list, or too long, or a seed is none or there twice.

    """
    found = list[int]()
    for part in seeds.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise RequestError(f'{name} {seeds}: expected seeds and ranges of them, such as "0-7" or "1,5,20-22"')
        first, last = (check_seed(int(text), name) for text in (match[1], match[2] or match[1]))
        if not 0 <= last - first < MOST_PICTURES:
            raise RequestError(f"{name} {part.strip()}: expected a range upwards, of at most {MOST_PICTURES}")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise RequestError(f"{name} {seeds}: a seed is there twice, and would draw the same picture")
    if len(found) > MOST_PICTURES:
        raise RequestError(f"{name} {seeds}: {len(found)} pictures, at most {MOST_PICTURES} are drawn at once")
    return tuple(found)
