"""What participants may know of a round: who is in, who is waited for, and for how long."""

from __future__ import annotations

import time

from mos_common import mos_pb2
from mos_server.round.waiting import waited_for
from mos_server.state.journal import Journal


def round_news(journal: Journal) -> mos_pb2.RoundsReply:
    """Return the news of the round that runs, or else of the last one."""
    rounds = journal.rounds.all()
    if not rounds:
        return mos_pb2.RoundsReply()
    last = journal.rounds.unfinished() or rounds[-1]
    waiting = waited_for(journal, last)
    silent = set() if waiting is None else set(waiting.names)
    members: dict[str, mos_pb2.Member] = {}
    for each in journal.rounds.members(last.id):  # a name that has several keys is one participant
        members[each.name] = mos_pb2.Member(
            participant=each.name, activity=each.activity, waited_for=each.name in silent
        )
    return mos_pb2.RoundsReply(
        round=last.id,
        status=last.status,
        reason=last.reason,
        wanted=last.settings.wait,
        waits_s=0.0 if waiting is None else max(0.0, waiting.until - time.time()),
        members=members.values(),
    )
