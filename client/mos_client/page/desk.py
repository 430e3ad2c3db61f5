"""Which state folders a page is for, and how each of them stands, read from its files alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mos_client.federation.activity import JOINED, Activity, read_activity
from mos_client.federation.consent import consented
from mos_client.federation.pinning import has_joined
from mos_client.federation.session import SETTINGS, Session
from mos_client.federation.tuned import tuned_already
from mos_client.page.work import GIVEN_KIT, Job
from mos_common.digests import digest_of_file
from mos_common.errors import MosError
from mos_common.kit import Kit, read_kit
from mos_common.trust import KIT

STEPS = {
    "pictures": "Pictures",
    "tuning": "Tuning",
    "leaving": "What leaves",
    "round": "The round",
    "draw": "Draw",
    "withdraw": "Withdraw",
}


@dataclass(frozen=True)
class Desk:
    """What `mos-client open` was given: one state folder, or a folder of several; perhaps a kit."""

    home: Path
    state: Path | None = None
    kit: Path | None = None

    def folders(self) -> dict[str, Path]:
        """Return the state folders by name, the one that was used last first."""
        if self.state is not None:
            found = [self.state] if (self.state / SETTINGS).is_file() else []
        else:
            found = [path.parent for path in self.home.glob(f"*/{SETTINGS}")]
        found.sort(key=lambda path: (path / SETTINGS).stat().st_mtime, reverse=True)
        return {path.resolve().name: path for path in found}

    def new(self, concept: str) -> Path:
        """Return the state folder that a concept gets, as `join` chooses it."""
        return self.state or self.home / concept.strip("<>")


@dataclass(frozen=True)
class Standing:
    """How a state folder stands. `name` is that of its addresses."""

    name: str
    session: Session
    activity: Activity | None

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.session.state

    @property
    def kit(self) -> Kit:
        """Its kit: as it was given, or as it was kept by `join`.

        Raises:
            TrustError: there is none.

        """
        kept = self.state / KIT
        return read_kit(kept if kept.is_file() else self.state / GIVEN_KIT)

    @property
    def runs(self) -> bool:
        """True while a `join` runs on it, no matter who started it."""
        if self.activity is not None and self.activity.runs:
            return True
        return any(Job(self.state, name).runs for name in ("tune", "join"))  # not yet reported

    @property
    def taking_part(self) -> bool:
        """True while that `join` answers the server."""
        return self.activity is not None and self.activity.runs and self.activity.stage == JOINED

    @property
    def concept_file(self) -> Path | None:
        """The concept file of the pictures as they are, or None if it is still to be tuned."""
        try:
            return tuned_already(self.session)
        except MosError:
            return None

    @property
    def has_agreed(self) -> bool:
        """True if the participant has agreed to send just this concept file."""
        file = self.concept_file
        return file is not None and consented(self.state) == digest_of_file(file)

    @property
    def has_joined(self) -> bool:
        """True if it has enrolled."""
        return has_joined(self.state)

    @property
    def models(self) -> list[Path]:
        """The downloaded models, newest first."""
        return self.session.downloaded()

    @property
    def token(self) -> str:
        """The concept's name in fused models."""
        return self.session.token(self.kit.name)

    @property
    def has_pictures(self) -> bool:
        """True if there is anything in the folder of pictures."""
        folder = self.session.request.images
        return folder.is_dir() and any(folder.iterdir())

    @property
    def check(self) -> Job:
        """The `check` of the pictures and settings as they are now."""
        return Job(self.state, f"check-{self._now()}")

    @property
    def next_step(self) -> str:
        """The first step that is not done."""
        if self.models:
            return "draw"
        if self.has_agreed or self.taking_part:
            return "round"
        if self.concept_file is not None:
            return "leaving"
        return "tuning" if self.runs else "pictures"

    def done(self) -> set[str]:
        """Return the steps that are done."""
        tuned, agreed = self.concept_file is not None, self.has_agreed
        done = {"pictures": tuned or self.has_pictures, "tuning": tuned, "leaving": agreed, "round": bool(self.models)}
        return {step for step, is_done in done.items() if is_done}

    def _now(self) -> str:
        request, seen = self.session.request, hashlib.sha256()
        seen.update(repr((request.steps, request.base, dict(request.settings), request.mark)).encode())
        if request.images.is_dir():
            for path in sorted(request.images.rglob("*")):
                about = path.stat()
                seen.update(repr((str(path), about.st_size, about.st_mtime_ns)).encode())
        return seen.hexdigest()[:16]


def standing_of(request: Request) -> Standing:
    """Return how the state folder in a request's address stands.

    Raises:
        HTTPException: there is none of that name.

    """
    name = request.path_params["name"]
    folder = request.app.state.desk.folders().get(name)
    if folder is None:
        raise HTTPException(404, "There is no such concept here.")
    return Standing(name, Session.load(folder), read_activity(folder))
