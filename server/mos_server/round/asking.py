"""What a round is asked for with: the texts of a command line or a form become its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mos_common.errors import RequestError
from mos_common.own.names import Publishes
from mos_common.settings import flag_texts
from mos_server.state.folder import ServerConfig
from mos_server.state.records import RoundSettings

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_S = 3650 * 86400.0  # a calendar ends somewhere


def asked_settings(
    config: ServerConfig,
    *,
    wait: int = 1,
    share: float = 0.5,
    grace: str = "1h",
    deadline: str = "2h",
    scoring: str = "1h",
    min_identity: float | None = None,
    flag_loss: float = 0.05,
    review: bool = False,
    publish: Publishes | None = None,
    method: str | None = None,
    sets: Sequence[str] | None = None,
    weights: Sequence[str] | None = None,
    workers: str | None = None,
    ridge: float | None = None,
    preserve: float | None = None,
    keep_all: bool = False,
) -> RoundSettings:
    """Return the settings of a round; what is not said is the federation's.

    Raises:
        RequestError: a text is no duration, a setting is unknown or out of bounds, or the round
            would publish what the federation's kits do not say.

    """
    return RoundSettings(
        wait=wait,
        share=share,
        grace_s=duration_s(grace, "--grace"),
        deadline_s=duration_s(deadline, "--deadline"),
        scoring_s=duration_s(scoring, "--scoring"),
        min_identity=min_identity,
        flag_loss=flag_loss,
        review=review,
        fusion=changed_fusion(
            config.fusion,
            method=method,
            sets=sets,
            weights=weights,
            workers=workers,
            ridge=ridge,
            preserve=preserve,
            keep_all=keep_all,
        ),
        publishes=_published(publish, config.publishes),
    )


def _published(asked: Publishes | None, federation: Publishes) -> Publishes:
    """Return what a round publishes.

    Raises:
        RequestError: it would publish what the federation's kits do not say.

    """
    if asked == "own" and federation != "own":
        raise RequestError(
            "--publish own: participants joined with kits that say that only fused models are published, so nobody "
            "agreed; mos-server init --publish own makes a federation whose kits ask for it"
        )
    return federation if asked is None else asked


def changed_fusion(
    kept: Mapping[str, Any],
    *,
    method: str | None = None,
    sets: Sequence[str] | None = None,
    weights: Sequence[str] | None = None,
    workers: str | None = None,
    ridge: float | None = None,
    preserve: float | None = None,
    keep_all: bool = False,
) -> dict[str, Any]:
    """Return kept fusion settings, overridden by those of a command line; both are JSON.

    Without flags the kept settings are returned unchanged.

    Raises:
        RequestError: as for `FusionSettings.changed`.

    """
    if not (method or sets or weights or workers or keep_all or ridge is not None or preserve is not None):
        return dict(kept)
    from mos_server.fusion.settings import DEFAULT, FusionSettings

    if method is not None and method != kept.get("method", DEFAULT):
        # Another method starts from its own defaults: the kept ones may be unknown to this version.
        kept = {**kept, "method": method, "settings": {}}
    texts = flag_texts(sets, ridge=ridge, preserve=preserve)
    before = FusionSettings.from_json(kept)
    changed = before.changed(method=method, texts=texts, weights=weights or (), workers=workers, keep_all=keep_all)
    return changed.to_json()


def duration_s(text: str, flag: str) -> float:
    """Return the seconds of a duration such as 45s, 30m, 2h or 7d.

    Raises:
        RequestError: the text is not written like that, or it is longer than `LONGEST_S`.

    """
    parts = _DURATION.fullmatch(text)
    if parts is None or float(parts[1]) == 0:
        raise RequestError(f"{flag} {text!r}: expected a number and a unit, such as 45s, 30m, 2h or 7d")
    seconds = float(parts[1]) * _SECONDS[parts[2]]
    if seconds > LONGEST_S:
        raise RequestError(f"{flag} {text!r}: expected at most {LONGEST_S / 86400:.0f}d")
    return seconds
