"""Compare the shapes of two pictures, without loading torch."""

from __future__ import annotations

ASPECT = 0.02  # by which a mask's shape may differ from its picture's


def same_shape(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Return True if two sizes (width, height) have about the same aspect ratio."""
    aspect = picture[0] / picture[1]
    return abs(mask[0] / mask[1] - aspect) <= ASPECT * aspect
