"""The two ways in which long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total): steps of a drawing, bytes of a download.
CountProgress = Callable[[int, int], None]
# Called with one line for a person, such as "unet: 3/5 recorded".
TextProgress = Callable[[str], None]
