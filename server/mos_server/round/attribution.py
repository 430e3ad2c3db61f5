"""What the process of a round is doing with a stranger's data, written down before it is done.

A process that dies leaves its last line behind, so the next one knows whose data was being read,
and does not read it again. An error is no death: it is handled where it is raised. Nor is a disk
that fails while data is being read. If it is full, the line is taken back without a new block; if
it takes nothing at all, the process says why it ends, and its server takes the line back before the
next one starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_common.errors import StateError
from mos_common.files import write_atomically

if TYPE_CHECKING:
    from mos_common.base_model import Base
    from mos_server.fusion.statistics import Recorded, Recorder, Recording

# Reading an answer takes milliseconds: a process that dies just then died of it.
# Recording takes most of a round, so one death may be an accident; a second one is not.
DEATHS_OF_READING, DEATHS_OF_RECORDING = 1, 2
CONCEPT, SCORES, RECORDING = "the concept of", "the scores of", "recording"


class Attribution:
    """The deaths of one round's processes, by what each was doing.

    Opening it counts what the last process left behind.

    Raises:
        StateError: the file cannot be written. Every call may raise it.

    """

    def __init__(self, folder: Path, round_id: str) -> None:
        self._file, self._round = _file(folder), round_id
        kept = _kept(self._file, round_id)
        self._deaths: dict[str, int] = dict(kept.get("deaths", {}))
        if left := kept.get("doing"):
            self._deaths[left] = self._deaths.get(left, 0) + 1
            self._write(None)

    def fatal(self, kind: str) -> list[str]:
        """Return whose data of one kind has ended a process as often as it may."""
        limit = DEATHS_OF_RECORDING if kind == RECORDING else DEATHS_OF_READING
        prefix = f"{kind} "
        return [
            what.removeprefix(prefix)
            for what, deaths in self._deaths.items()
            if what.startswith(prefix) and deaths >= limit
        ]

    @contextmanager
    def doing(self, kind: str, whose: str) -> Iterator[None]:
        """Say within the block that data of this kind is being read."""
        try:
            self._write(f"{kind} {whose}")
            yield
        finally:
            self._take_back()

    def recorder(self, base: Base) -> Recorder:
        """Return a recorder of this process that says which concept it is recording."""
        from mos_common.concept_file import content_digest
        from mos_server.fusion.statistics import recorder_here

        record_here = recorder_here(base)

        def record(recordings: Sequence[Recording]) -> Iterator[Recorded]:
            for recording in recordings:
                if recording.named is None:
                    yield from record_here([recording])
                    continue
                with self.doing(RECORDING, content_digest(recording.named.concept)):
                    recorded = list(record_here([recording]))
                yield from recorded

        return record

    def close(self) -> None:
        """Forget everything: the round has ended."""
        with suppress(OSError):  # what is left of a round that has ended says nothing
            self._file.unlink(missing_ok=True)

    def _write(self, doing: str | None) -> None:
        write_atomically(self._file, self._line(doing), mode=0o600)

    def _take_back(self) -> None:
        """Say that nothing is being read: on a full disk, by overwriting what was said."""
        try:
            self._write(None)
        except StateError as full:
            try:
                with self._file.open("r+b", buffering=0) as file:
                    file.write(self._line(None).rstrip().ljust(len(self._file.read_bytes())))
            except FileNotFoundError:
                return  # nothing was said
            except OSError:
                raise full from None

    def _line(self, doing: str | None) -> bytes:
        return json.dumps({"round": self._round, "doing": doing, "deaths": self._deaths}).encode() + b"\n"


def take_back(folder: Path, round_id: str) -> None:
    """Say that nothing was being read: the round's process ended by itself and said why.

    Raises:
        StateError: the file still cannot be written.

    """
    file = _file(folder)
    kept = _kept(file, round_id)
    if kept.get("doing"):
        write_atomically(file, json.dumps({**kept, "doing": None}).encode() + b"\n", mode=0o600)


def is_attributed(folder: Path, round_id: str) -> bool:
    """Return whether the process of a round that has just died was reading a stranger's data."""
    return bool(_kept(_file(folder), round_id).get("doing"))


def _file(folder: Path) -> Path:
    return folder / "reading.json"


def _kept(file: Path, round_id: str) -> Mapping[str, Any]:
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("round") == round_id else {}
