"""GradientFusion: a round, seen from Flower.

    collect   ask every admitted participant who is here for a concept; admit and spool the uploads one by one
    fuse      what was admitted becomes a candidate
    score     the participants measure how well their concepts survived in it
    publish   sign it, or hold it back

Every step is journalled before the next begins. A round that is killed is begun again under its name and goes on where it
was: uploads that are spooled are not asked for again, a candidate that is written is not fused again, scores are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

from mos_common import messages
from mos_common.digests import digest_of_file
from mos_common.errors import ConceptError, FusionError, MosError
from mos_common.node_key import key_digest
from mos_server.round.candidate import fuse_candidate, is_current, lost_identity, publish, reasons_to_hold_back
from mos_server.round.exchange import ATTEMPTS, Exchange
from mos_server.round.intake import refuse_upload, take_upload
from mos_server.state.folder import State
from mos_server.state.journal import Store
from mos_server.state.records import (
    CANCELLED,
    COLLECTING,
    FUSING,
    HELD_BACK,
    PUBLISHED,
    SCORING,
    Participant,
    Upload,
)

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from mos_common.base_model import Base

log = logging.getLogger(__name__)

_NO_ARRAYS, _NO_CONFIG = ArrayRecord(), ConfigRecord()


class RoundCancelledError(MosError):
    """The operator cancelled the round while it ran."""


@dataclass(frozen=True)
class Patience:
    """How often participants are looked after, in seconds.

    pause_s: between two looks for answers. retry_s: before a lost answer is asked for again; longer each time.
    back_soon_s: how long somebody who is gone when scores are asked for is waited for.
    """

    pause_s: float = 1.0
    retry_s: float = 5.0
    back_soon_s: float = 30.0


class GradientFusion(Strategy):
    """Fuses the concepts of one round."""

    def __init__(self, state: State, store: Store, round_id: str, base: Base, patience: Patience | None = None) -> None:
        self._state = state
        self._store = store
        self._round = store.round(round_id)
        self._base = base
        self._patience = patience or Patience()
        self._nodes: dict[int, Participant] = {}
        self._asked: dict[str, Participant] = {}
        self._unscorable: set[str] = set()

    def start(self, grid: Grid, initial_arrays: ArrayRecord = _NO_ARRAYS, *args: Any, **kwargs: Any) -> Result:
        """Run the round to its end. Flower's arguments (rounds, arrays, timeouts) mean nothing here: see RoundSettings.

        Raises:
            MosError: the round cannot be ended well; the journal says how far it came.

        """
        self.summary()
        uploads = self._exchange(grid, lambda: self.configure_train(1, _NO_ARRAYS, _NO_CONFIG, grid), "tuning")
        self._collect(uploads)
        while True:
            self._fuse()
            self._score(grid)
            if is_current(self._state.candidate(self._round.id), self._admitted()):
                break  # else a concept was withdrawn meanwhile: fuse the others
        self._publish()
        for late in uploads.arrived():
            self._take_upload(late, None)
        return Result()

    def summary(self) -> None:
        """Tell what the round waits for, or goes on with."""
        if self._is_settled():
            self._note(f"going on with {len(self._admitted())} concepts that are here")
            return
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._round.deadline))
        self._note(f"waiting for {self._round.settings.wait} or more concepts, until {until} at the latest")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The question for a concept, to everybody here of whom nothing has arrived in this round."""
        heard = {upload.key for upload in self._store.uploads(self._round.id)}
        request = messages.TrainRequest(round=self._round.id, base=self._base.fingerprint)
        ttl = max(60.0, self._round.deadline - time.time())
        for node, participant in self._online(grid).items():
            if participant.key not in heard:
                yield Message(messages.train_content(request), node, MessageType.TRAIN, ttl=ttl)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take uploads one by one: each is spooled, or refused with its reasons, before the next is fetched."""
        for reply in replies:
            self._take_upload(reply, self._round.id)
        return None, MetricRecord({"concepts": len(self._admitted())})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The question how well a concept survived, to everybody here whose concept is in the candidate and not scored."""
        unscored = self._unscored()
        candidate = self._state.candidate(self._round.id)
        request = messages.EvaluateRequest(
            round=self._round.id,
            base=self._base.fingerprint,
            candidate=candidate.name,
            candidate_digest=digest_of_file(candidate / "manifest.json"),
        )
        for node, participant in self._online(grid).items():
            if participant.key in unscored:
                content = messages.evaluate_content(request)
                yield Message(content, node, MessageType.EVALUATE, ttl=self._round.settings.scoring_s)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep the identity numbers of every concept, as they arrive."""
        for reply in replies:
            participant = self._asked[reply.metadata.reply_to_message_id]
            try:
                identity = messages.read_identity(reply.content)
            except ConceptError as error:
                self._unscorable.add(participant.key)
                self._tell(participant, "scores refused", f"{participant.name}: scores refused: {error}")
                continue
            for upload in self._admitted():
                if upload.key == participant.key:
                    self._store.set_identity(upload.id, asdict(identity))
                    numbers = ", ".join(
                        f"{name.replace('_', ' ')} {value:.3f}" for name, value in asdict(identity).items()
                    )
                    self._tell(participant, "scored", f"{upload.token} identity: {numbers}")
        return None

    def _collect(self, exchange: Exchange) -> None:
        if self._is_settled():
            return
        self._store.advance(self._round.id, COLLECTING)
        for upload in self._store.adopt_late_uploads(self._round.id):
            self._note(f"{upload.token} is here already ({upload.bytes / 1e6:.2f} MB)")
        self.aggregate_train(1, exchange.answers(lambda: self._collected(exchange)))
        count, wanted = len(self._admitted()), self._round.settings.wait
        if count == 0:
            raise FusionError(
                "no concept arrived before the deadline: see who is online with mos-server status, then ask for another round"
            )
        if count < wanted:
            self._note(f"the deadline has come with {count} of {wanted} concepts: going on with these")

    def _is_settled(self) -> bool:
        """Whether it was settled what is fused before the server was killed."""
        return self._store.round(self._round.id).status in (FUSING, SCORING)

    def _collected(self, exchange: Exchange) -> bool:
        self._check_cancelled()
        enough = exchange.idle and len(self._admitted()) >= self._round.settings.wait
        return enough or time.time() >= self._round.deadline

    def _take_upload(self, reply: Message, round_id: str | None) -> None:
        participant = self._asked[reply.metadata.reply_to_message_id]
        try:
            received = messages.read_upload(reply.content)
        except ConceptError as error:
            upload = refuse_upload(self._store, participant, str(error), round_id)
        else:
            upload = take_upload(self._state, self._store, self._base, participant, received.data, round_id)
        if upload.refused is not None:
            self._tell(participant, "refused", f"{participant.name}: upload refused: {upload.refused}")
        else:
            later = "" if round_id else ", too late: kept for the next round"
            self._tell(participant, f"uploaded{later}", f"{upload.token} arrived, {upload.bytes / 1e6:.2f} MB{later}")

    def _fuse(self) -> None:
        if is_current(self._state.candidate(self._round.id), self._admitted()):
            return  # it was written before the server was killed
        self._store.advance(self._round.id, FUSING)
        self._note(f"fusing {', '.join(upload.token for upload in self._admitted())}")

        def progress(text: str) -> None:
            self._check_cancelled()
            self._note(text)

        fuse_candidate(self._state, self._store, self._round.id, self._base, progress)

    def _score(self, grid: Grid) -> None:
        self._store.advance(self._round.id, SCORING)
        exchange = self._exchange(grid, lambda: self.configure_evaluate(1, _NO_ARRAYS, _NO_CONFIG, grid), "scoring")
        until = time.time() + self._round.settings.scoring_s

        def scored() -> bool:
            self._check_cancelled()
            return not self._unscored() or time.time() >= until or exchange.idle_s > self._patience.back_soon_s

        self.aggregate_evaluate(1, exchange.answers(scored))
        for upload in self._admitted():
            if upload.identity is None:
                self._note(f"{upload.token} was not scored: its owner was not here, or could not")
        for token, loss in lost_identity(self._round, self._admitted()).items():
            self._note(f"flagged: {token} lost {loss:.3f} of its identity in fusion")

    def _publish(self) -> None:
        uploads = self._admitted()
        reasons = reasons_to_hold_back(self._round, uploads)
        if reasons:
            asked = f"the round was asked for identity {self._round.settings.min_identity:g} or more"
            self._note(f"held back: {'; '.join(reasons)}; {asked}")
            self._store.advance(self._round.id, HELD_BACK, f"{'; '.join(reasons)}; {asked}")
            return
        folder = publish(self._state, self._round, uploads)
        self._note(f"published: {folder}")
        self._store.advance(self._round.id, PUBLISHED)

    def _exchange(self, grid: Grid, questions: Callable[[], Iterable[Message]], activity: str) -> Exchange:
        def asked(message_id: str, node: int) -> None:
            participant = self._asked[message_id] = self._nodes[node]
            self._tell(participant, activity, f"asked {participant.name}", attempts=1)

        def lost(node: int, reason: str, attempts: int) -> None:
            participant = self._nodes[node]
            then = "given up" if attempts >= ATTEMPTS else "asking again"
            self._tell(participant, f"lost, {then}", f"{participant.name}: no answer ({reason}), {then}")

        return Exchange(
            grid, questions, asked=asked, lost=lost, pause_s=self._patience.pause_s, retry_s=self._patience.retry_s
        )

    def _online(self, grid: Grid) -> dict[int, Participant]:
        """Who is here and admitted. Flower says which nodes are online, the journal whose they are."""
        admitted = {each.key: each for each in self._store.participants() if each.revoked is None}
        here = {}
        for node in grid.get_nodes():
            participant = admitted.get(key_digest(node.public_key))
            if participant is not None and node.status == "online":
                here[node.node_id] = participant
        self._nodes |= here
        return here

    def _admitted(self) -> list[Upload]:
        return self._store.admitted(self._round.id)

    def _unscored(self) -> set[str]:
        return {upload.key for upload in self._admitted() if upload.identity is None} - self._unscorable

    def _check_cancelled(self) -> None:
        if self._store.round(self._round.id).status == CANCELLED:
            raise RoundCancelledError(f"{self._round.id} was cancelled")

    def _tell(self, participant: Participant, activity: str, text: str, *, attempts: int = 0) -> None:
        self._store.set_activity(self._round.id, participant.key, activity, attempts=attempts)
        self._note(text)

    def _note(self, text: str) -> None:
        log.info("%s: %s", self._round.id, text)
        self._store.note(self._round.id, text)
