"""The records of the journal: participants, rounds and uploads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mos_common.errors import RequestError, StateError
from mos_common.identity_scores import Identity

ASKED, COLLECTING, FUSING, SCORING = "asked", "collecting", "fusing", "scoring"
PUBLISHED, HELD_BACK, FAILED, CANCELLED = "published", "held back", "failed", "cancelled"
UNFINISHED = (ASKED, COLLECTING, FUSING, SCORING)


class _Fusion(TypedDict, total=False):
    settings: Mapping[str, Any]
    weights: Mapping[str, float]
    method: str
    workers: str


def _checked_fusion(values: Mapping[str, Any]) -> Mapping[str, Any]:
    _FUSION.validate_python(values)
    return values


_FUSION = TypeAdapter(_Fusion)
Fusion = Annotated[Mapping[str, Any], AfterValidator(_checked_fusion)]
"""Fusion settings as kept in config.json and the journal (`FusionSettings.to_json`)."""


@dataclass(frozen=True)
class RoundSettings:
    """The settings of a round, as its operator chose them.

    wait: number of admitted uploads to wait for, until the deadline.
    deadline_s: seconds after the start at which waiting for uploads ends.
    min_identity: publish only if every concept's fused identity reaches this; None: always.
    flag_loss: a concept that loses more identity than this in fusion is flagged in the manifest.
    scoring_s: seconds that the participants have to score a candidate.
    fusion: how the round is fused; only values that differ from the defaults.
    """

    wait: int = 1
    deadline_s: float = 7200.0
    min_identity: float | None = None
    flag_loss: float = 0.05
    scoring_s: float = 3600.0
    fusion: Fusion = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.wait < 1:
            raise RequestError(f"--wait {self.wait}: a round needs at least one concept")
        if not 1 <= self.deadline_s <= 30 * 86400:
            raise RequestError(f"--deadline of {self.deadline_s:.0f} s: expected one second to thirty days")
        if self.min_identity is not None and not -1 <= self.min_identity <= 1:
            raise RequestError(f"--min-identity {self.min_identity}: a cosine, so from -1 to 1")
        if not 0 <= self.flag_loss <= 2:
            raise RequestError(f"--flag-loss {self.flag_loss}: a difference of two cosines, so from 0 to 2")


_SETTINGS = TypeAdapter(RoundSettings)


def describe_fusion(fusion: Mapping[str, Any]) -> str:
    """Describe fusion settings kept as JSON in one line: the method, and what is not default."""
    parts = [f"{name}={_as_text(value)}" for name, value in fusion.get("settings", {}).items()]
    parts += [f"weight {token}={weight:g}" for token, weight in fusion.get("weights", {}).items()]
    parts += [f"workers {fusion['workers']}"] if fusion.get("workers") else []
    return ", ".join([fusion.get("method", "gradient"), *(parts or ["all defaults"])])


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} texts" if len(value) > 3 else "|".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Participant:
    """An enrolled participant; `key` is the digest of its node key. A name may have several."""

    key: str
    name: str
    pem: bytes
    admitted: float
    revoked: float | None
    seen: float | None


@dataclass(frozen=True)
class Round:
    """A round and where it stands. `values` are its settings as they are journalled."""

    id: str
    status: str
    reason: str
    values: Mapping[str, Any]
    asked: float
    ended: float | None

    @cached_property
    def settings(self) -> RoundSettings:
        """The settings that it was asked for with; those its release did not have are defaults.

        Raises:
            StateError: this release does not know one of them, or they are damaged.

        """
        known = {each.name for each in fields(RoundSettings)}
        if unknown := sorted(set(self.values) - known if isinstance(self.values, Mapping) else ()):
            raise StateError(
                f"{self.id} was asked for with {', '.join(unknown)}, which this release does not know: "
                "install the release that asked for it"
            )
        try:
            return _SETTINGS.validate_python(self.values)
        except (ValidationError, RequestError) as error:
            raise StateError(
                f"the settings of {self.id} cannot be used ({error}): restore the journal from a backup"
            ) from error

    @property
    def deadline(self) -> float:
        """The time at which waiting for uploads ends, in seconds since the epoch."""
        return self.asked + self.settings.deadline_s

    @property
    def unfinished(self) -> bool:
        """True while a server still has to work on it."""
        return self.status in UNFINISHED


@dataclass(frozen=True)
class Member:
    """The activity of one participant in a round."""

    key: str
    name: str
    activity: str
    attempts: int
    at: float


@dataclass(frozen=True)
class Upload:
    """A concept that arrived; `refused` says why it is not fused, and is None if it is."""

    id: int
    round: str | None
    key: str
    participant: str
    concept: str
    digest: str
    bytes: int
    received: float
    refused: str | None
    identity: Identity | None

    @property
    def token(self) -> str:
        """The name that prompts use: `<alice/cat>`."""
        return f"<{self.participant}/{self.concept.strip('<>')}>"
