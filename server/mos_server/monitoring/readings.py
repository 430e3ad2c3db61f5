"""What the metrics say, read from the journal and the state folder at the moment of a scrape."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mos_common.own.names import beside
from mos_server.monitoring.refusal_reasons import REASONS, WITHDRAWN, reason_kind
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.published import published_model
from mos_server.state.records import ASKED, COLLECTING, FUSING, SCORING, Round, Upload

# A participant's node calls every half minute, and the journal takes note every 15 s.
ONLINE_WITHIN_S = 90.0
# A server starts a round that was asked for within seconds; a fusion has no deadline of its own.
_STARTS_WITHIN_S, _FUSES_WITHIN_S = 600.0, 6 * 3600.0
_SIZES_EVERY_S = 60.0
PARTS = ("concepts", "moments", "models", "sheets", "flower", "log", "pki", "journal")


@dataclass(frozen=True)
class Seen:
    """A name, when it was last here (s since the epoch, or never), and whether it is barred."""

    name: str
    last: float | None
    barred: bool

    @property
    def online(self) -> bool:
        """True if it has been here within `ONLINE_WITHIN_S`."""
        return not self.barred and self.last is not None and time.time() - self.last <= ONLINE_WITHIN_S


def people(journal: Journal) -> list[Seen]:
    """Return every name that has enrolled, sorted."""
    keys = journal.participants.all()
    names = sorted({each.name for each in keys})
    found = []
    for name in names:
        own = [each for each in keys if each.name == name]
        seen = [each.seen for each in own if each.seen is not None and each.revoked is None]
        found.append(Seen(name, max(seen, default=None), all(each.revoked is not None for each in own)))
    return found


def invitations(journal: Journal) -> Counter[str]:
    """Return how many kits are open, used and expired."""
    counts = Counter({"open": 0, "used": 0, "expired": 0})
    now = time.time()
    for _, expires, used in journal.participants.invitations():
        counts["used" if used is not None else "expired" if expires < now else "open"] += 1
    return counts


@dataclass(frozen=True)
class Uploaded:
    """How many uploads arrived, their bytes, and how many were refused, by the kind of reason."""

    count: int
    bytes: int
    refused: Counter[str]
    withdrawn: int


def uploads(journal: Journal) -> Uploaded:
    """Return the sums over every upload of the journal."""
    refused, count, size = Counter(dict.fromkeys(REASONS, 0)), 0, 0
    for reason, number, byte_count in journal.uploads.tally():
        count, size = count + number, size + byte_count
        if reason is not None:
            refused[reason_kind(reason)] += number
    return Uploaded(count, size, refused, refused.pop(WITHDRAWN))


def state_seconds(journal: Journal, round_: Round) -> float:
    """Return for how many seconds an open round has been in its state."""
    since = [at for state, at in journal.audit.states_of(round_.id) if state == round_.status]
    return max(0.0, time.time() - (since[-1] if since else round_.asked))


def state_limit_seconds(round_: Round) -> float:
    """Return how many seconds an open round may be in its state.

    Raises:
        StateError: its settings are of another release, or damaged.

    """
    limits = {ASKED: _STARTS_WITHIN_S, FUSING: _FUSES_WITHIN_S}
    if round_.status in limits:
        return limits[round_.status]
    return {COLLECTING: round_.settings.deadline_s, SCORING: round_.settings.scoring_s}[round_.status]


def fusion_seconds(journal: Journal, round_: Round) -> float | None:
    """Return how many seconds the last fusion of a round took; None if it made no candidate."""
    began, took = None, None
    for state, at in journal.audit.states_of(round_.id):
        if state == SCORING and began is not None:
            took = at - began
        began = at if state == FUSING else began
    return took


@dataclass(frozen=True)
class Model:
    """The model that was published last: round, uploads, manifest, size in bytes."""

    round: Round
    uploads: list[Upload]
    manifest: dict[str, Any]
    bytes: int


def latest_model(state: State, journal: Journal) -> Model | None:
    """Return the model that was published last, if there is one.

    Raises:
        StateError: its folder is not what the journal says.

    """
    round_ = journal.rounds.latest_published()
    if round_ is None:
        return None
    folder = published_model(state, journal, round_.id)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    size = _bytes_in(folder) + _bytes_in(beside(folder))
    return Model(round_, journal.uploads.admitted(round_.id), manifest, size)


class Sizes:
    """The bytes of each part of a state folder, counted at most once a minute."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._counted, self._at = dict[str, int](), float("-inf")

    def __call__(self) -> dict[str, int]:
        """Return the bytes of each of `PARTS`."""
        if time.monotonic() - self._at > _SIZES_EVERY_S:
            root = self._state.path
            self._counted = {part: _bytes_in(root / part) for part in PARTS if part != "journal"}
            files = [*root.glob("server.db*"), *root.glob("audit.jsonl")]
            self._counted["journal"] = sum(map(_bytes_in, files))
            self._at = time.monotonic()
        return self._counted


def disk(state: State) -> tuple[int, int]:
    """Return the bytes of the disk of a state folder: all of them, and those that are free."""
    usage = shutil.disk_usage(state.path)
    return usage.total, usage.free


def certificate_seconds(state: State) -> dict[str, float]:
    """Return for how many seconds the certificates of the server and its authority are still valid.

    Raises:
        StateError: they cannot be read.

    """
    authority, _ = state.pki.issuer()
    certificates = {"authority": authority, "server": state.pki.server_certificate()}
    return {name: each.not_valid_after_utc.timestamp() - time.time() for name, each in certificates.items()}


def _bytes_in(path: Path) -> int:
    """Return the bytes of a file or of all files of a folder, of those that are still there."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        try:
            total += file.lstat().st_size if not file.is_dir() else 0
        except OSError:  # its process has removed it meanwhile
            continue
    return total
