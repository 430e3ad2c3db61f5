"""Show participants to their operator: names, the keys of each, and open invitations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby

from mos_server.state.journal import Journal
from mos_server.state.records import Participant


def describe_people(journal: Journal) -> Iterator[str]:
    """Yield the lines of `mos-server status` about participants and invitations."""
    participants = sorted(journal.participants.all(), key=lambda each: each.name)
    names = {name: list(keys) for name, keys in groupby(participants, key=lambda each: each.name)}
    in_all = f"{len(names)}, with {_keys(participants)}" if len(names) != len(participants) else len(names)
    yield f"participants: {in_all}" if names else "participants: none has enrolled yet"
    for name, keys in names.items():
        barred = ", barred" if all(each.revoked for each in keys) else ""
        if len(keys) == 1:
            yield f"  {name}: {_described(keys[0])}{barred}"
            continue
        yield f"  {name}: {_keys(keys)}{barred}"
        for each in keys:
            yield f"    {_described(each)}{', barred' if each.revoked and not barred else ''}"
    for name, expires, used in journal.participants.invitations():
        if used is None:
            word = "expired" if expires < time.time() else "good until"
            yield f"  {name}: invited, kit {word} {_date(expires)}"


def _described(participant: Participant) -> str:
    presence = f"last here {_date(participant.seen)}" if participant.seen else "never here since"
    release = f", release {participant.release}" if participant.release else ""
    return f"key {participant.key[:12]}, enrolled {_date(participant.admitted)}, {presence}{release}"


def _keys(participants: list[Participant]) -> str:
    return "1 key" if len(participants) == 1 else f"{len(participants)} keys"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
