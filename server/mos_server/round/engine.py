"""The round: from asking for concepts to a published model.

    collect   ask every admitted participant who is online for a concept; admit and spool the
              uploads one by one
    fuse      turn the admitted concepts into a candidate
    score     let the participants measure how well their concepts survived in it; go back to `fuse`
              if one was withdrawn meanwhile
    publish   sign the candidate, or hold it back

Every step is journalled before the next one begins. A round that is killed is started again under
its name and resumes where it was: spooled uploads are not requested again, a candidate that is
written is not fused again, and scores are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mos_common.commands import command_line
from mos_common.digests import digest_of_file
from mos_common.errors import FusionError, MosError
from mos_common.identity_scores import Identity
from mos_common.round_requests import EvaluateRequest, TrainRequest
from mos_server.errors import UndecidedError
from mos_server.round.attribution import CONCEPT, SCORES, Attribution
from mos_server.round.candidate import (
    fuse_candidate,
    is_current,
    is_made,
    lost_identity,
    publish,
    reasons_to_hold_back,
)
from mos_server.round.exchange import (
    ATTEMPTS,
    Answer,
    Exchange,
    Nodes,
    NoScores,
    Polling,
    Question,
    Unusable,
    WithOwn,
)
from mos_server.round.intake import refuse_upload, set_aside, take_upload
from mos_server.round.waiting import (
    NO_SCORES,
    SCORES_REFUSED,
    SCORES_SET_ASIDE,
    SCORING_BEGINS,
    UNSCORABLE,
    Grace,
    at_time,
    describe_waiting,
    listed,
)
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import (
    CANCELLED,
    COLLECTING,
    FUSING,
    HELD_BACK,
    SCORING,
    Participant,
    Round,
    Upload,
)
from mos_server.tracing import span

if TYPE_CHECKING:
    from mos_common.base_model import Base

log = logging.getLogger(__name__)


class RoundCancelledError(MosError):
    """The operator cancelled the round while it ran."""


class RoundEngine:
    """One round of the journal, ready to run."""

    def __init__(
        self, state: State, journal: Journal, round_id: str, base: Base, polling: Polling | None = None
    ) -> None:
        self._state = state
        self._journal = journal
        self._round: Round = journal.rounds.get(round_id)
        self._base = base
        self._polling = polling or Polling()
        self._candidate = state.artefacts.candidate(round_id)
        self._attribution = Attribution(state.path, round_id)
        # From here on the clock of the machine may be set: a deadline moves with it.
        self._deadline = time.monotonic() + self._round.deadline - time.time()
        members = journal.rounds.members(round_id)
        self._unscorable = {each.key for each in members if each.activity in UNSCORABLE}

    def run(self, nodes: Nodes) -> None:
        """Run the round to its end among `nodes`, from the state that the journal has.

        Raises:
            MosError: the round cannot be completed; the journal says how far it got.

        """
        with span("round", round=self._round.id):
            self._run(nodes)

    def _run(self, nodes: Nodes) -> None:
        self._note(self.summary())
        self._set_aside()
        uploads = self._exchange(nodes, self._concept_questions, "tuning")
        if not self._is_settled():
            with span("exchange", kind="concepts"):
                self._collect(uploads)
        try:
            while True:
                if not self._is_made():
                    self._fuse()
                    with span("exchange", kind="scores"):
                        self._score(nodes)
                    if not self._is_current():
                        continue  # a concept was withdrawn meanwhile: fuse the others
                with span("publishing"):
                    if self._publish():
                        break
        except UndecidedError as question:
            self._hold_back(f"{question}. {self._answers(question)}")
        for participant, answer in uploads.arrived():
            self._take_upload(participant, answer, None)
        self._attribution.close()

    @contextmanager
    def reading(self, question: Question) -> Iterator[None]:
        """Say within the block whose answer is being read, to the process that comes after this."""
        kind = CONCEPT if isinstance(question.request, TrainRequest) else SCORES
        with self._attribution.doing(kind, question.participant.key):
            yield

    def summary(self) -> str:
        """Describe what the round is waiting for, or what it goes on with."""
        if self._is_settled():
            return f"going on with {len(self._admitted())} concepts that are here"
        return f"waiting for {describe_waiting(self._round)}"

    def _set_aside(self) -> None:
        """Set aside what earlier processes of this round died of, before it is read again."""
        for participant, activity, text in set_aside(self._journal, self._round.id, self._attribution):
            if activity == SCORES_SET_ASIDE:
                self._unscorable.add(participant.key)
            self._report(participant, activity, text)

    def _collect(self, exchange: Exchange) -> None:
        self._journal.rounds.advance(self._round.id, COLLECTING)
        for upload in self._journal.uploads.adopt_late(self._round.id):
            self._note(f"{upload.token} is here already ({upload.bytes / 1e6:.2f} MB)")

        grace = Grace(self._round.settings, self._note)

        def collected() -> bool:
            self._check_cancelled()
            if time.monotonic() >= self._deadline:
                return True
            if len(self._admitted()) < self._round.settings.wait:
                return False
            answered = {upload.key for upload in self._journal.uploads.of(self._round.id)}
            return exchange.idle or grace.is_over(len(answered), exchange.waited_for, exchange.silent_s)

        for participant, answer in exchange.answers(collected):
            self._take_upload(participant, answer, self._round.id)
        count, wanted = len(self._admitted()), self._round.settings.wait
        if count == 0:
            raise FusionError(
                "no concept arrived before the deadline: see who is online with mos-server status, "
                "then ask for another round"
            )
        if count < wanted:
            self._note(f"the deadline has come with {count} of {wanted} concepts: going on with these")

    def _take_upload(self, participant: Participant, answer: Answer, round_id: str | None) -> None:
        """Admit and spool an answer, or refuse it with the reasons.

        Without a round it is kept for the next one.
        """
        if isinstance(answer, bytes | WithOwn):
            reading = self._attribution.doing(CONCEPT, participant.key)
            upload = take_upload(self._state, self._journal, self._base, participant, answer, round_id, reading=reading)
        else:
            reason = answer.reason if isinstance(answer, Unusable) else "scores came where a concept was asked for"
            upload = refuse_upload(self._journal, participant, reason, round_id)
        if upload.refused is not None:
            self._report(participant, "refused", f"{participant.name}: upload refused: {upload.refused}")
        else:
            later = "" if round_id else ", too late: kept for the next round"
            self._report(participant, f"uploaded{later}", f"{upload.token} arrived, {upload.bytes / 1e6:.2f} MB{later}")

    def _fuse(self) -> None:
        if self._is_current():
            return  # the candidate was written before the server was killed
        self._journal.rounds.advance(self._round.id, FUSING)
        self._note(f"fusing {listed([upload.token for upload in self._admitted()])}")

        def progress(text: str) -> None:
            self._check_cancelled()
            self._note(text)

        fuse_candidate(self._state, self._journal, self._round.id, self._base, progress, self._attribution)

    def _score(self, nodes: Nodes) -> None:
        self._journal.rounds.advance(self._round.id, SCORING)
        exchange = self._exchange(nodes, self._score_questions, "scoring")
        until = time.monotonic() + self._round.settings.scoring_s
        fused = {upload.id for upload in self._admitted()}
        if self._unscored():
            self._note(f"{SCORING_BEGINS}, until {at_time(time.time() + self._round.settings.scoring_s)} at the latest")

        grace = Grace(self._round.settings, self._note)

        def scored() -> bool:
            self._check_cancelled()
            if not self._unscored() or time.monotonic() >= until or exchange.idle_s > self._polling.back_soon_s:
                return True
            if {upload.id for upload in self._admitted()} != fused:
                return True  # withdrawn meanwhile: there is another model to score
            done = {upload.key for upload in self._admitted()} - self._unscored()
            return grace.is_over(len(done), exchange.waited_for, exchange.silent_s)

        for participant, answer in exchange.answers(scored):
            self._take_scores(participant, answer)
        for upload in self._admitted():
            if upload.identity is None and upload.key not in self._unscorable:
                self._note(f"{upload.token} was not scored: its owner was offline, or could not score it")
        for token, loss in lost_identity(self._round, self._admitted()).items():
            self._note(f"flagged: {token} lost {loss:.3f} of its identity in fusion")

    def _take_scores(self, participant: Participant, answer: Answer) -> None:
        if isinstance(answer, NoScores):
            self._unscorable.add(participant.key)
            self._report(participant, NO_SCORES, f"{participant.name}: no scores, the concept stays: {answer.reason}")
            return
        if not isinstance(answer, Identity):
            reason = answer.reason if isinstance(answer, Unusable) else "a concept came where scores were asked for"
            self._unscorable.add(participant.key)
            self._report(participant, SCORES_REFUSED, f"{participant.name}: scores refused: {reason}")
            return
        for upload in self._admitted():
            if upload.key == participant.key:
                self._journal.uploads.set_identity(upload.id, answer)
                self._report(participant, "scored", f"{upload.token} identity: {answer}")

    def _publish(self) -> bool:
        """Publish the model or hold it back; return False if a concept was withdrawn meanwhile."""
        uploads = self._admitted()
        round_ = self._journal.rounds.get(self._round.id)  # its operator may have asked for a review meanwhile
        if reasons := reasons_to_hold_back(round_, uploads):
            self._hold_back("; ".join(reasons))
            return True
        if publish(self._state, self._journal, round_, uploads, self._base) is None:
            self._check_cancelled()
            return False
        log.info("%s: published", self._round.id)
        return True

    def _hold_back(self, reason: str) -> None:
        self._note(f"held back: {reason}")
        self._journal.rounds.advance(self._round.id, HELD_BACK, reason)

    def _answers(self, question: UndecidedError) -> str:
        """Return the commands with which the operator answers the question."""
        withdraw = [
            command_line("mos-server", "concepts", self._state.path, "withdraw", token) for token in question.tokens
        ]
        again = command_line("mos-server", "round", self._state.path)
        return f"Withdraw one of them ({', or '.join(withdraw)}) and run {again}; or keep all: {again} --keep-all"

    def _concept_questions(self, nodes: Nodes) -> Iterator[Question]:
        """Yield a request for a concept to every participant online who has sent nothing yet."""
        answered = {upload.key for upload in self._journal.uploads.of(self._round.id)}
        request = TrainRequest(round=self._round.id, base=self._base.fingerprint)
        valid_s = max(60.0, self._deadline - time.monotonic())
        for node, participant in self._online(nodes).items():
            if participant.key not in answered:
                yield Question(node, participant, request, valid_s)

    def _score_questions(self, nodes: Nodes) -> Iterator[Question]:
        """Yield a request for scores to every participant online with an unscored concept."""
        unscored = self._unscored()
        request = EvaluateRequest(
            round=self._round.id,
            base=self._base.fingerprint,
            candidate=self._candidate.name,
            candidate_digest=digest_of_file(self._candidate / "manifest.json"),
        )
        for node, participant in self._online(nodes).items():
            if participant.key in unscored:
                yield Question(node, participant, request, self._round.settings.scoring_s)

    def _exchange(self, nodes: Nodes, questions: Callable[[Nodes], Iterator[Question]], activity: str) -> Exchange:
        def asked(participant: Participant) -> None:
            self._report(participant, activity, f"asked {participant.name}", attempts=1)

        def lost(participant: Participant, reason: str, attempts: int) -> None:
            then = "given up" if attempts >= ATTEMPTS else "asking again"
            self._report(participant, f"lost, {then}", f"{participant.name}: no answer ({reason}), {then}")

        return Exchange(nodes, questions, asked=asked, lost=lost, polling=self._polling)

    def _online(self, nodes: Nodes) -> dict[int, Participant]:
        """Return the admitted participants who are online, by node.

        The nodes say which keys are online, the journal says whose keys they are.
        """
        admitted = {each.key: each for each in self._journal.participants.all() if each.revoked is None}
        return {node: admitted[key] for node, key in nodes.online().items() if key in admitted}

    def _is_settled(self) -> bool:
        """Return whether collecting had already ended when the server was killed."""
        return self._journal.rounds.get(self._round.id).status in (FUSING, SCORING)

    def _is_current(self) -> bool:
        return is_current(self._candidate, self._admitted(), self._round.settings.fusion, self._round.id)

    def _is_made(self) -> bool:
        """Return whether the model was signed before the server was killed."""
        return is_made(self._state, self._journal, self._round)

    def _admitted(self) -> list[Upload]:
        return self._journal.uploads.admitted(self._round.id)

    def _unscored(self) -> set[str]:
        return {upload.key for upload in self._admitted() if upload.identity is None} - self._unscorable

    def _check_cancelled(self) -> None:
        if self._journal.rounds.get(self._round.id).status == CANCELLED:
            raise RoundCancelledError(f"{self._round.id} was cancelled")

    def _report(self, participant: Participant, activity: str, text: str, *, attempts: int = 0) -> None:
        self._journal.rounds.set_activity(self._round.id, participant.key, activity, attempts=attempts)
        self._note(text)

    def _note(self, text: str) -> None:
        log.info("%s: %s", self._round.id, text)
        self._journal.notes.add(self._round.id, text)
