"""The records of the journal: participants, rounds and uploads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mos_common.errors import RequestError, StateError
from mos_common.identity_scores import Identity
from mos_common.own.names import Publishes
from mos_server.state.clock import elapsed_s

ASKED, COLLECTING, FUSING, SCORING = "asked", "collecting", "fusing", "scoring"
PUBLISHED, HELD_BACK, FAILED, CANCELLED = "published", "held back", "failed", "cancelled"
UNFINISHED = (ASKED, COLLECTING, FUSING, SCORING)


class _Fusion(TypedDict, total=False):
    settings: Mapping[str, Any]
    weights: Mapping[str, float]
    method: str
    workers: str
    keep_all: bool


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
    share: of those who were asked, the share that must have answered before `grace_s` counts.
    grace_s: seconds without an answer after which the others are not waited for.
    publishes: `own` if own changes of those who agree are published beside the fused model.
    review: hold the model back until its operator publishes it.
    """

    wait: int = 1
    deadline_s: float = 7200.0
    min_identity: float | None = None
    flag_loss: float = 0.05
    scoring_s: float = 3600.0
    fusion: Fusion = field(default_factory=dict)
    share: float = 0.5
    grace_s: float = 3600.0
    publishes: Publishes = "fused"
    review: bool = False

    def __post_init__(self) -> None:
        if self.wait < 1:
            raise RequestError(f"--wait {self.wait}: a round needs at least one concept")
        if not 0 < self.share <= 1:
            raise RequestError(f"--share {self.share}: a share of those who are asked, so above 0 and at most 1")
        for flag in ("deadline", "grace", "scoring"):
            if not 1 <= (seconds := getattr(self, f"{flag}_s")) <= 30 * 86400:
                raise RequestError(f"--{flag} of {seconds:.0f} s: expected one second to thirty days")
        if self.min_identity is not None and not -1 <= self.min_identity <= 1:
            raise RequestError(f"--min-identity {self.min_identity}: a cosine, so from -1 to 1")
        if not 0 <= self.flag_loss <= 2:
            raise RequestError(f"--flag-loss {self.flag_loss}: a difference of two cosines, so from 0 to 2")


_SETTINGS = TypeAdapter(RoundSettings)


def describe_fusion(fusion: Mapping[str, Any]) -> str:
    """Describe fusion settings kept as JSON in one line: method, preset, what is not default."""
    method, settings = fusion.get("method", "gradient"), dict(fusion.get("settings", {}))
    parts = [f"preset {settings.pop('preset', 'identity')}"] if method == "gradient" else []
    parts += [f"{name}={_as_text(value)}" for name, value in settings.items()]
    parts += [f"weight {token}={weight:g}" for token, weight in fusion.get("weights", {}).items()]
    parts += [f"workers {fusion['workers']}"] if fusion.get("workers") else []
    parts += ["every concept kept"] if fusion.get("keep_all") else []
    return ", ".join([method, *(parts or ["all defaults"])])


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} texts" if len(value) > 3 else "|".join(map(str, value))
    if value is None:
        return "none"
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
    release: str | None = None


@dataclass(frozen=True)
class Round:
    """A round and where it stands. `values` are its settings as they are journalled.

    `manifest` is the SHA-256 of the published model's manifest; rounds of earlier releases have
    none. `clock` is when it was asked for, by the clock of the running system.
    """

    id: str
    status: str
    reason: str
    values: Mapping[str, Any]
    asked: float
    ended: float | None
    manifest: str | None = None
    clock: Mapping[str, Any] | None = None

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
        """The time at which waiting for uploads ends, in seconds since the epoch.

        It moves with the wall clock, so that a step of that clock leaves as much time as before.
        """
        return time.time() + self.settings.deadline_s - elapsed_s(self.asked, self.clock)

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
    """A concept that arrived; `refused` says why it is not fused, and is None if it is.

    `own`: its participant agreed that its own changes are published.
    """

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
    own: bool = False

    @property
    def token(self) -> str:
        """The name that prompts use: `<alice/cat>`."""
        return token_of(self.participant, self.concept)


@dataclass(frozen=True)
class KeptConcept:
    """A concept of which uploads are kept: in how many rounds, in which last, and how large."""

    participant: str
    concept: str
    rounds: int
    last_round: str | None
    received: float
    bytes: int
    own: bool

    @property
    def token(self) -> str:
        """The name that prompts use."""
        return token_of(self.participant, self.concept)


def token_of(participant: str, concept: str) -> str:
    """Return the name of a participant's concept in prompts: `<alice/cat>`."""
    return f"<{participant}/{concept.strip('<>')}>"
