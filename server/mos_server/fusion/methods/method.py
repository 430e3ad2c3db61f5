"""The interface of a merge method, and its result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept, Survival
from mos_common.settings import settings_to_json
from mos_server.fusion.leaving_out import Influence
from mos_server.fusion.statistics import Statistics


class MethodSettings(Protocol):
    """The settings of one method: a frozen dataclass, its fields declared by `settings.setting`."""

    method: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def settings_in_manifest(settings: MethodSettings) -> dict[str, Any]:
    """Return the settings as a model's manifest has them: a preset's numbers are written out."""
    terms = getattr(settings, "terms", None)
    return settings_to_json(settings) | (settings_to_json(terms) if terms is not None else {})


@dataclass
class Solved:
    """Δ of every layer, and the measurements of the method.

    `survival` is what is left of each concept, by token and group of layers. `drift` is the effect
    on ordinary prompts, by group. `influence` is what each keeps without another, by group.
    """

    changes: dict[str, LowRank] = field(default_factory=dict)
    survival: dict[str, dict[str, Survival]] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    influence: dict[str, Influence] = field(default_factory=dict)


class Option(StrEnum):
    """The options of a fusion besides the method's settings, by their flags."""

    WEIGHTS = "--weight"
    WORKERS = "--workers"
    MOMENTS = "--moments"


S = TypeVar("S", bound=MethodSettings)
Merge = Callable[[Base, Sequence[NamedConcept], Mapping[str, float], S, Statistics], Solved]


@dataclass(frozen=True)
class Method(Generic[S]):
    """A way to merge concepts: the type of its settings, its function, and the options it honours.

    Other options are refused (`methods.check_honoured`): none is passed over. A method honours
    `--workers` and `--moments` if it records through `statistics`.

    `merge(base, concepts, weights, settings, statistics)` takes concepts in canonical order, a
    weight for every token, and `statistics` to record with. It returns `Solved`, and may raise
    UnusableConceptError to have a concept left out.
    """

    settings: type[S]
    merge: Merge[S]
    honours: frozenset[Option]

    @property
    def help(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.merge) or "").partition("\n")[0]
