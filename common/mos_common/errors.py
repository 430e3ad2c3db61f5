"""The errors that commands report, and their exit codes.

    MosError                    1   any other foreseen error
    ├── RequestError            2   the request is invalid (flags, names, regions)
    ├── PicturesError           3   the folder of pictures cannot be used
    ├── BaseModelError          4   the base model cannot be used, or is not the expected one
    ├── ConceptError            5   a concept or concept file cannot be used
    ├── FusionError             6   concepts cannot be fused
    ├── NetworkError            7   the other side cannot be reached, or refuses
    ├── TrustError              8   a kit, key, signature or digest is not valid
    ├── StateError              9   a state directory or an output cannot be read or written
    ├── DrawingError           10   the model draws no picture: its numbers are not finite
    └── ReleaseError           11   the releases of client and server do not fit together

The numbers are the exit codes of every command; 130 is an interruption (Ctrl-C). A message says
what we got, what we expected, and what to do.
"""

from __future__ import annotations


class MosError(Exception):
    """An error that a command reports in one line, without a traceback."""

    exit_code = 1


class RequestError(MosError):
    """The request is invalid: a flag, a name, a setting, a region."""

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
    """A kit, a key, a signature or a digest is not valid."""

    exit_code = 8


class StateError(MosError):
    """A state directory or an output cannot be read or written."""

    exit_code = 9


class DrawingError(MosError):
    """The model draws no picture: its numbers are not finite."""

    exit_code = 10


class ReleaseError(MosError):
    """The releases of client and server do not fit together."""

    exit_code = 11
