"""News of the round, asked of the server by `join` and kept in `round.json` for all who look."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import grpc
from pydantic import ConfigDict, Field

from mos_client.federation.calling import CALL_S, calling, explained
from mos_client.federation.enrolment import Enrolment
from mos_common import mos_pb2
from mos_common.errors import MosError
from mos_common.files import write_atomically
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.node_key import sign_call
from mos_common.texts import ShownText

NEWS = "round.json"
_MOST_MEMBERS = 10_000
Short = Annotated[ShownText, Field(max_length=2000)]


class Member(StrictModel):
    """A participant in a round, and what it does, in the server's words."""

    model_config = ConfigDict(frozen=True)
    participant: Short
    activity: Short
    waited_for: bool


class RoundNews(StrictModel):
    """How a round stands.

    `round` is empty before the first one. `until` is in seconds since the epoch by our clock, 0 if
    nobody is waited for. `at` is when the server said so.
    """

    model_config = ConfigDict(frozen=True)
    round: Short
    status: Short
    reason: Short
    wanted: int
    until: float
    members: Annotated[list[Member], Field(max_length=_MOST_MEMBERS)]
    at: float


def read_news(state: Path) -> RoundNews | None:
    """Return the news that were fetched last, or None if there are none."""
    try:
        return from_json(RoundNews, (state / NEWS).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, JsonModelError):
        return None


def fetch_news(enrolment: Enrolment, state: Path) -> None:
    """Ask the server and keep what it says; an earlier release says nothing, and that is no error.

    Raises:
        MosError: the server cannot be reached, refuses, or says something impossible.

    """
    request = mos_pb2.RoundsRequest()
    try:
        with calling(enrolment.kit) as stub:
            answer = stub.Rounds(request, metadata=sign_call(enrolment.key, "Rounds", request), timeout=CALL_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return
        raise explained(error, enrolment.kit) from error
    now = time.time()
    said = {
        **{name: getattr(answer, name) for name in ("round", "status", "reason", "wanted")},
        "until": now + min(answer.waits_s, 1e9) if answer.waits_s > 0 else 0.0,
        "members": [
            {"participant": each.participant, "activity": each.activity, "waited_for": each.waited_for}
            for each in answer.members
        ],
        "at": now,
    }
    try:
        news = from_json(RoundNews, json.dumps(said))
    except JsonModelError as error:
        raise MosError(f"the server's news of the round cannot be read ({error})") from error
    write_atomically(state / NEWS, news.model_dump_json().encode(), mode=0o600, durably=False)


def withdraw(enrolment: Enrolment, concept: str) -> list[str]:
    """Have the server erase this participant's concept; return the models that have it still.

    Raises:
        RequestError: the server does not have it.
        NetworkError: the server cannot be reached, or is of an earlier release.
        TrustError: it refuses.

    """
    request = mos_pb2.WithdrawRequest(concept=concept)
    try:
        with calling(enrolment.kit) as stub:
            signed = sign_call(enrolment.key, "Withdraw", request)
            answer = stub.Withdraw(request, metadata=signed, timeout=CALL_S)
    except grpc.RpcError as error:
        raise explained(error, enrolment.kit) from error
    return list(answer.models)
