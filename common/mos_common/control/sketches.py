"""Sketches made of pictures: their edges, white lines on black."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from mos_common.errors import RequestError

LOW, HIGH = 100, 200
"""The thresholds of Canny with which most published adapters were trained."""


def edges_of(
    picture: UInt8[np.ndarray, "height width 3"], low: float = LOW, high: float = HIGH
) -> UInt8[np.ndarray, "height width"]:
    """Return a picture's edges by Canny's method, 255 on a line and 0 elsewhere.

    A line begins where the gradient is above `high`, and goes on while it is above `low`.

    Raises:
        RequestError: the extra `[control]` is not installed.

    """
    try:
        import cv2
    except ImportError as error:
        raise RequestError(
            'edges of a picture need opencv: pip install "federated-mix-of-show[control]", or give a finished sketch'
        ) from error
    edges: UInt8[np.ndarray, "height width"] = cv2.Canny(np.ascontiguousarray(picture), low, high)
    return edges
