"""Keep diffusers and transformers quiet about what is judged here, and quote their errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers and transformers from logging and from warning of deprecations."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.disable_progress_bar()
            library.set_verbosity(library.CRITICAL)
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
