"""All settings of a fusion in one value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mos_common.errors import RequestError
from mos_common.settings import changed, differences, parse_settings, settings_from_json
from mos_server.fusion.cluster import check_workers
from mos_server.fusion.methods import check_honoured, method_named
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.methods.method import MethodSettings, Option

DEFAULT = "gradient"
HERE = "here"  # as --workers: on this machine, in this process


@dataclass(frozen=True)
class FusionSettings:
    """A method with its settings, the weights of concepts, and where they are recorded.

    `weights` are by token; a concept without a weight counts 1. `workers` is that of
    `cluster.recorder_for`; None: in this process. With `keep_all` no concept is left out for what
    it does to others, or for being a copy. The value is kept as JSON (config.json, the
    journal) with only what differs from the defaults, so that {} is all defaults.
    """

    of_method: MethodSettings = field(default_factory=GradientSettings)
    weights: Mapping[str, float] = field(default_factory=dict)
    workers: str | None = None
    keep_all: bool = False

    def __post_init__(self) -> None:
        for token, weight in self.weights.items():
            if not 0 < weight < 1e6:
                raise RequestError(f"the weight of {token} is {weight}: expected a number above 0, below a million")
        if self.workers is not None:
            check_workers(self.workers)

    def changed(
        self,
        *,
        method: str | None = None,
        texts: Iterable[str] = (),
        weights: Iterable[str] = (),
        workers: str | None = None,
        keep_all: bool = False,
    ) -> FusionSettings:
        """Return these settings, overridden by those of a command line.

        Another method starts from its own defaults, and without workers if it has no use for them:
        they do not change the model. Weights do, so they stay, or are refused. `texts` are those of
        `--set`, `weights` those of `--weight`.

        Raises:
            RequestError: the method is unknown or has no such setting (the message names the
                nearest), it does not honour weights or workers and has some, or a value is not of
                its type or range.

        """
        name = method or self.of_method.method
        kind = method_named(name).settings
        before = self.of_method if name == self.of_method.method else kind()
        try:
            of_method = changed(before, parse_settings(kind, texts))
        except RequestError as error:
            raise RequestError(f"method {name}: {error}") from error
        merged = {**self.weights, **parse_weights(weights)}
        kept = {token: weight for token, weight in merged.items() if weight != 1}
        if workers is None and Option.WORKERS in method_named(name).honours:
            workers = self.workers
        where = None if workers == HERE else workers
        given = {Option.WEIGHTS: kept, Option.WORKERS: where}
        check_honoured(name, [option for option, value in given.items() if value])
        keep_all = keep_all or self.keep_all
        if keep_all and isinstance(of_method, GradientSettings):
            of_method = replace(of_method, least_share=None)
        return FusionSettings(of_method, kept, where, keep_all)

    def for_tokens(self, tokens: Collection[str]) -> FusionSettings:
        """Return the same settings, without weights for concepts that are not among `tokens`."""
        return replace(self, weights={token: weight for token, weight in self.weights.items() if token in tokens})

    def to_json(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, as JSON."""
        values: dict[str, Any] = {"settings": differences(self.of_method), "weights": dict(self.weights)}
        if self.of_method.method != DEFAULT:
            values["method"] = self.of_method.method
        values |= {"workers": self.workers, "keep_all": self.keep_all}
        return {name: value for name, value in sorted(values.items()) if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FusionSettings:
        """Read the JSON of `to_json`.

        Raises:
            RequestError: the method or a setting is unknown to this version, or a value is out of
                range.

        """
        if unknown := values.keys() - {"method", "settings", "weights", "workers", "keep_all"}:
            raise RequestError(
                f"fusion settings: {min(unknown)!r} is unknown; known: method, settings, weights, workers, keep_all"
            )
        try:
            kept = _Kept.model_validate(values)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise RequestError(f"fusion settings: {wrong['loc'][0]} is not one ({wrong['msg'].lower()})") from error
        of_method = settings_from_json(method_named(kept.method).settings, kept.settings)
        return cls(of_method, kept.weights, kept.workers, kept.keep_all)


class _Kept(BaseModel):
    """The types of what `to_json` writes; each method checks its own settings."""

    method: str = DEFAULT
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    workers: str | None = None
    keep_all: bool = False


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """Parse `<alice/cat>=2` and the like, by token.

    Raises:
        RequestError: a text is not TOKEN=NUMBER.

    """
    weights = {}
    for text in texts:
        token, equals, number = text.rpartition("=")
        try:
            weights[token] = float(number)
        except ValueError:
            equals = ""
        if not equals or not token:
            raise RequestError(f"--weight {text}: expected a token and a number, such as '<alice/cat>=2'")
    return weights
