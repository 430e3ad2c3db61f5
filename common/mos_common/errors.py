"""What can go wrong, as a person would sort it.

    MosError                    1   anything we foresaw that fits nowhere below
    ├── RequestError            2   what was asked for cannot be done as it was asked (flags, names, regions)
    ├── PicturesError           3   the folder of pictures cannot be used
    ├── BaseModelError          4   the base model cannot be used, or is another one
    ├── ConceptError            5   a concept or concept file cannot be used
    ├── FusionError             6   concepts cannot be fused
    ├── NetworkError            7   the other side cannot be reached, or refuses
    ├── TrustError              8   a kit, key, signature or digest does not hold
    └── StateError              9   a state directory or an output cannot be read or written

The numbers are the exit codes of every command; 130 is an interruption (Ctrl-C). A message says what we got, what we
expected, and what to do.
"""

from __future__ import annotations


class MosError(Exception):
    """An error that a command reports in one line, without a traceback."""

    exit_code = 1


class RequestError(MosError):
    """What was asked for cannot be done as it was asked."""

    exit_code = 2


class PicturesError(MosError):
    """The folder of pictures cannot be used."""

    exit_code = 3


class BaseModelError(MosError):
    """The base model cannot be used, or is not the one expected."""

    exit_code = 4


class ConceptError(MosError):
    """A concept or a concept file cannot be used."""

    exit_code = 5


class FusionError(MosError):
    """Concepts cannot be fused."""

    exit_code = 6


class NetworkError(MosError):
    """The other side cannot be reached, or refuses."""

    exit_code = 7


class TrustError(MosError):
    """A kit, a key, a signature or a digest does not hold."""

    exit_code = 8


class StateError(MosError):
    """A state directory or an output cannot be read or written."""

    exit_code = 9
