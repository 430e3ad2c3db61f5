"""What names a person in a state folder, and how it is found and blotted out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mos_server.state.journal import Journal

FORGOTTEN = "(forgotten)"
# Lines of logs and of `status` have the first twelve digits of a key or digest.
_SHORT = 12
_IN_NAMES = r"\w-"


@dataclass(frozen=True)
class Traces:
    """A person's name, keys, concepts (`<my-face>`) and the digests of its files.

    Concepts and digests that another participant has too are left out: they name nobody.
    """

    name: str
    keys: frozenset[str]
    concepts: frozenset[str]
    digests: frozenset[str]

    @cached_property
    def _identifiers(self) -> re.Pattern[str]:
        of_theirs = rf"<{re.escape(self.name)}/[^<>\s]*>"
        numbers = [f"{each[:_SHORT]}[0-9a-f]*" for each in sorted(self.keys | self.digests)]
        return re.compile("|".join([of_theirs, *map(re.escape, sorted(self.concepts)), *numbers]))

    @cached_property
    def _mentions(self) -> re.Pattern[str]:
        # A person may be called "cat": that word in <cat> or <bob/cat> is somebody's concept.
        name = rf"(?<![{_IN_NAMES}]){re.escape(self.name)}(?!>|[{_IN_NAMES}])"
        return re.compile(f"{self._identifiers.pattern}|{name}")

    def identified_in(self, text: str) -> bool:
        """Return whether a text has a key, a digest or a concept of theirs; the name is not enough.

        This is for texts of programs, where a name such as "settings" is also an ordinary word.
        """
        return self._identifiers.search(text) is not None

    def mentioned_in(self, prose: str) -> bool:
        """Return whether a text for people names this person."""
        return self._mentions.search(prose) is not None

    def blotted(self, prose: str) -> str:
        """Return a text for people with every mention replaced."""
        return self._mentions.sub(FORGOTTEN, prose)

    def without_weights(self, value: Any) -> Any:
        """Return JSON settings without the entries whose key is a concept of theirs."""
        if not isinstance(value, dict):
            return value
        return {key: self.without_weights(each) for key, each in value.items() if not self.identified_in(key)}


def traces_of(journal: Journal, name: str) -> Traces | None:
    """Return what the journal knows of a person, or None if it does not know the name."""
    keys = {each.key for each in journal.participants.all() if each.name == name}
    invited = any(participant == name for participant, *_ in journal.participants.invitations())
    everything = journal.uploads.everything()
    theirs = [upload for upload in everything if upload.participant == name]
    others = [upload for upload in everything if upload.participant != name]
    if not (keys or invited or theirs):
        return None
    return Traces(
        name,
        frozenset(keys | {upload.key for upload in theirs}),
        _alone({upload.concept for upload in theirs} - {"?"}, (upload.concept for upload in others)),
        _alone({upload.digest for upload in theirs if upload.digest}, (upload.digest for upload in others)),
    )


def _alone(theirs: set[str], others: Iterable[str]) -> frozenset[str]:
    return frozenset(theirs - set(others))
