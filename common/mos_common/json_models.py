"""JSON that a stranger may have written, read into pydantic models: the first thing wrong ends it.

pydantic collects every error, at some thousand bytes each, before it says the first: 400 kB of
wrong JSON can take 400 MB. Here the first damaged part of a file ends its reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

Model = TypeVar("Model", bound="StrictModel")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MOST_ENTRIES = 20_000  # of one list or mapping: more than a thousand concepts have, or a model has layers
_LONGEST = 200  # characters of a reason
_STOPS = "the first error ends it"


class JsonModelError(ValueError):
    """The JSON is not what the model says; the message says where, and what is wrong there."""


class _FirstError(Exception):  # not a ValueError: pydantic would collect it and go on
    pass


class StrictModel(BaseModel):
    """A model that refuses unknown keys, and that `from_json` reads."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _stop_at_the_first_error(
        cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        if info.context is not _STOPS:
            return handler(data)
        if isinstance(data, Mapping):
            for key, value in data.items():
                if key not in cls.model_fields:
                    raise _FirstError(f"{str(key)[:80]!r}: unknown to this release")
                if isinstance(value, list | dict) and len(value) > MOST_ENTRIES:
                    raise _FirstError(f"{key!r}: {len(value):,} entries, at most {MOST_ENTRIES:,} are read")
        try:
            return handler(data)
        except ValidationError as error:
            raise _FirstError(first_problem(error)) from error


def from_json(model: type[Model], text: str | bytes) -> Model:
    """Read a model from JSON.

    Raises:
        JsonModelError: it is not JSON, or not what the model says.

    """
    try:
        return model.model_validate_json(text, context=_STOPS)
    except ValidationError as error:  # no JSON at all
        raise JsonModelError(first_problem(error)) from error
    except _FirstError as error:
        raise JsonModelError(_shown(str(error))) from error


def first_problem(error: ValidationError) -> str:
    """Return the first error in one line: where, and what."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return _shown(f"{where[:80]!r}: {first['msg'].removeprefix('Value error, ')}" if where else first["msg"])


def _shown(reason: str) -> str:
    line = (reason.splitlines() or ["damaged"])[0]
    return line.encode("utf-8", "replace").decode()[:_LONGEST]
