"""Settings: small frozen dataclasses, set by `--set NAME=VALUE`, stored as JSON with their results.

A part (fusion, a merge method, tuning, drawing) declares each setting once, with its default, unit
and meaning:

    @dataclass(frozen=True)
    class DrawingSettings:
        steps: int = setting(20, "denoising steps")

`--set`, `--help`, config.json, the journal and the manifest all read that one declaration. Values
are parsed and checked by pydantic against the field's type; ranges are checked by the dataclass's
own `__post_init__`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields, replace
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mos_common.errors import RequestError

S = TypeVar("S")
NONE = "none"  # the text of None, for settings that the base may decide
SEPARATOR = "|"  # between the texts of one setting; texts such as prompts contain commas


def setting(default: Any, meaning: str, *, unit: str = "") -> Any:
    """Declare one setting of a frozen dataclass: its default, meaning and unit.

    With `dataclasses.MISSING` the setting has no default, for example if a base's preset gives it.
    """
    return field(default=default, metadata={"meaning": meaning, "unit": unit})


def parse_settings(kind: type, texts: Iterable[str]) -> dict[str, Any]:
    """Parse the `NAME=VALUE` texts of `--set` into values for `kind`, by name.

    A tuple of texts is written as a JSON list or with "|" between its texts.

    Raises:
        RequestError: a text is not NAME=VALUE, a name is unknown (the message names the nearest) or
            given twice, or a value is not of the setting's type.

    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise RequestError(f"--set {text}: expected NAME=VALUE, such as {_example(kind)}")
        if name in values:
            raise RequestError(f"--set {name} is given twice: give it once")
        values[name] = parse_value(kind, name, value)
    return values


def flag_texts(sets: Iterable[str] | None, **flags: object | None) -> list[str]:
    """Return the texts of `--set`, with the flags that abbreviate one written as such texts."""
    return [*(sets or ()), *(f"{name}={value}" for name, value in flags.items() if value is not None)]


def parse_value(kind: type, name: str, text: str) -> Any:
    """Parse the value of one setting from text.

    Raises:
        RequestError: as for `parse_settings`.

    """
    declared = _declared(kind, name)
    annotation, value = _types(kind)[name], cast("object", text)
    if get_origin(annotation) is tuple:
        value = _texts(text)
    elif text.lower() == NONE and type(None) in get_args(annotation):
        value = None
    try:
        return _adapter(kind, name).validate_python(value)
    except ValidationError as error:
        raise RequestError(f"--set {name}={text}: {_reason(error)} ({_about(declared)})") from error


def changed(settings: S, values: Mapping[str, Any]) -> S:
    """Return `settings` with some values replaced; the dataclass checks their ranges."""
    return replace(settings, **values)  # type: ignore[type-var]


def settings_from_json(kind: type[S], values: Mapping[str, Any]) -> S:
    """Read settings that `settings_to_json` wrote; missing ones get their defaults.

    Raises:
        RequestError: a name is unknown to this version, or a value is not of its type or range.

    """
    read = {}
    for name, value in values.items():
        declared = _declared(kind, name)
        try:
            read[name] = _adapter(kind, name).validate_python(value)
        except ValidationError as error:
            raise RequestError(f"setting {name} is {value!r}: {_reason(error)} ({_about(declared)})") from error
    return kind(**read)


def settings_to_json(settings: Any) -> dict[str, Any]:
    """Return every setting by name as JSON values: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def differences(settings: Any) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by name, as JSON values."""
    values = settings_to_json(settings)
    defaults = {
        each.name: list(each.default) if isinstance(each.default, tuple) else each.default for each in _all(settings)
    }
    return {name: value for name, value in values.items() if value != defaults[name]}


def describe_settings(settings: Any) -> Iterator[str]:
    """Yield one line per setting: NAME=VALUE (or NAME, if it must be given), its meaning and unit.

    If `settings` is a type, the values are the defaults.
    """
    for each in fields(settings):
        if each.metadata:
            value = getattr(settings, each.name, MISSING)
            yield f"{each.name}{'' if value in (MISSING, '') else f'={_as_text(value)}'}: {_about(each)}"


def _declared(kind: Any, name: str) -> Field[Any]:
    known = {each.name: each for each in fields(kind) if each.metadata}
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise RequestError(f"unknown setting {name!r}: {hint}known: {', '.join(known) or 'none, it has nothing to set'}")


def _about(declared: Field[Any]) -> str:
    unit, meaning = declared.metadata["unit"], declared.metadata["meaning"]
    return f"{meaning} ({unit})" if unit else str(meaning)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(part, float) for part in value):
        return ",".join(f"{part:g}" for part in value)
    if isinstance(value, tuple):
        return f"{len(value)} texts" if len(value) > 3 else SEPARATOR.join(map(str, value))
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _example(kind: type) -> str:
    with_default = (each for each in fields(kind) if each.metadata and each.default not in (MISSING, None, ""))
    first = next(with_default, None)
    return f"{first.name}={_as_text(first.default)}" if first else "steps=20"


def _texts(text: str) -> Sequence[str]:
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise RequestError(
                f"{text}: expected a JSON list of texts, or texts with {SEPARATOR} between them"
            ) from error
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def _reason(error: ValidationError) -> str:
    return error.errors()[0]["msg"].lower()


def _all(settings: Any) -> Sequence[Field[Any]]:
    return fields(settings)


def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)  # with the validators of a setting's type


def _adapter(kind: Any, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_types(kind)[name], config=ConfigDict(allow_inf_nan=False))
