"""Get TIES and DARE from peft, whose code was written by their authors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mos_common.errors import RequestError


def peft_merges() -> Any:
    """Return peft's module of merges.

    Raises:
        RequestError: peft is not installed.

    """
    try:
        from peft.utils import merge_utils
    except ImportError as error:
        raise RequestError(
            "ties and dare come from peft, which is not installed: pip install 'federated-mix-of-show[rivals]'"
        ) from error
    return merge_utils


@contextmanager
def any_density() -> Iterator[None]:
    """Within: peft does not warn about a density of 1, which is deliberate here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        yield
