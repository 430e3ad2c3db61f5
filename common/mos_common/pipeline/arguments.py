"""Turn the arguments of a call of the pipeline into a prompt and a seed for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from mos_common.base_model import DTYPES
from mos_common.drawing import Seed
from mos_common.errors import RequestError
from mos_common.flags import check_seed

Own = Literal["auto", "off"]


def checked_own(own: Own) -> Own:
    """Return the way to draw with own changes.

    Raises:
        RequestError: there is no such way.

    """
    if own not in ("auto", "off"):
        raise RequestError(f"own {own!r}: expected auto or off")
    return own


def pictures_of(
    prompt: str | Sequence[str],
    per_prompt: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    seed: int | Sequence[int] | None,
) -> tuple[tuple[str, ...], tuple[Seed, ...]]:
    """Return the prompt and the seed of each picture.

    Raises:
        RequestError: they are of other kinds, or not as many as pictures.

    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(each, str) for each in prompts):
        raise RequestError("prompt: expected a text, or a list of texts")
    if per_prompt < 1:
        raise RequestError(f"num_images_per_prompt {per_prompt}: expected at least 1")
    if generator is not None and seed is not None:
        raise RequestError("generator and seed both say what the noise is: give one of them")
    given = list(seed) if isinstance(seed, Sequence) else None
    if given is not None and len(prompts) == per_prompt == 1:
        per_prompt = max(1, len(given))
    count = len(prompts) * per_prompt
    told = tuple(each for each in prompts for _ in range(per_prompt))
    if generator is not None:
        return told, _generators(generator, count)
    if given is None:
        first = seed if isinstance(seed, int) else int(torch.randint(2**62, ()))
        given = [first + number for number in range(count)]
    if len(given) != count:
        raise RequestError(f"{len(given)} seeds for {count} pictures: give one for each, or one number")
    return told, tuple(check_seed(each, "seed") for each in given)


def _generators(generator: torch.Generator | Sequence[torch.Generator], count: int) -> tuple[torch.Generator, ...]:
    """Return the generator of each picture; one alone serves all of them, one after the other."""
    several = (generator,) * count if isinstance(generator, torch.Generator) else tuple(generator)
    if len(several) != count:
        raise RequestError(f"{len(several)} generators for {count} pictures: give one for each, or one")
    if away := next((each for each in several if each.device.type != "cpu"), None):
        raise RequestError(
            f"a generator on {away.device}: the noise is made on the processor, so that a seed is the same picture on "
            "every device; give torch.Generator()"
        )
    return several


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """Return the name of a number format."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
