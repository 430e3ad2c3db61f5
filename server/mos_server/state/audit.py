"""The audit's file: one JSON line for each event, each with the hash of the line before it.

A line is canonical JSON with these entries:

    sequence    1, 2, 3, ...
    at          the time in UTC
    what        "enrolled", "uploaded", "refused", "barred", "round published", ...
    who         the person it is about, as a seal; missing if it is about nobody
    details     round, key, concept, digest, reason, ...
    previous    `hash` of the line before it; 64 zeros in the first line
    hash        SHA-256 of this line without `hash`

Names, keys, concepts, digests and reasons stand in it as seals, such as ~5f0c…: HMAC-SHA256 of the
value under a random salt. The journal knows value and salt of each. Without them nobody can tell
what a seal stands for, and the chain still holds, so a person can be forgotten.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mos_common.files import canonical_json

FILE = "audit.jsonl"
BEGINNING = "0" * 64
SEAL = re.compile(r"~[0-9a-f]{32}")
_ENTRIES = {"sequence", "at", "what", "details", "previous", "hash"}
_TAIL_BYTES = 1 << 20  # a line has some hundred bytes


@dataclass(frozen=True)
class Row:
    """A line of the audit as the journal has it; `in_file` once it is known to be in the file."""

    sequence: int
    line: str
    hash: str
    in_file: bool


def seal_of(value: str, salt: bytes) -> str:
    """Return the seal of a value."""
    return "~" + hmac.new(salt, value.encode(), hashlib.sha256).hexdigest()[:32]


def line_time(moment: dt.datetime) -> str:
    """Return a moment as lines have it: in UTC, to the millisecond, sorted as text like as time."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_row(previous: Row | None, at: str, what: str, who: str | None, details: Mapping[str, Any]) -> Row:
    """Return the next line of the chain."""
    sequence, before = (1, BEGINNING) if previous is None else (previous.sequence + 1, previous.hash)
    entry = {"sequence": sequence, "at": at, "what": what, "details": dict(details), "previous": before}
    if who is not None:
        entry["who"] = who
    digest = _hash(entry)
    return Row(sequence, canonical_json(entry | {"hash": digest}).decode(), digest, False)


def append_rows(file: Path, rows: Sequence[Row]) -> None:
    """Append lines to the file, and wait until they are on the disk.

    Lines that are there already, because a process was killed before it could note that, are not
    written again, and a line that was written half-way is completed.

    Raises:
        OSError: the file cannot be written.

    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as out:
        out.seek(max(0, out.seek(0, os.SEEK_END) - _TAIL_BYTES))
        *whole, half = out.read().split(b"\n")
        last = _sequence(whole[-1]) if whole else 0
        for row in rows:
            if row.sequence <= last:
                continue
            line = row.line.encode()
            if half and not line.startswith(half):
                out.write(b"\n")  # it is not ours: `problems` names it
                half = b""
            out.write(line[len(half) :] + b"\n")
            half = b""
        out.flush()
        os.fsync(out.fileno())


def problems(file: Path, rows: Sequence[Row]) -> list[str]:
    """Return what does not hold in the file, compared with the journal's lines; [] if all does.

    Raises:
        OSError: the file exists and cannot be read.

    """
    data = file.read_bytes() if file.exists() else b""
    lines = data.split(b"\n")
    found = [] if lines.pop() == b"" else ["its last line is cut off"]
    found += _broken_links(lines, "line")
    found += _broken_links([row.line.encode() for row in rows], "the journal's line")
    known = {row.sequence: row.line.encode() for row in rows}
    there = dict(enumerate(lines, 1))
    different = [number for number, line in there.items() if known.get(number) not in (None, line)]
    found += [f"{_numbers(different)} other than in the journal"] if different else []
    missing = [row.sequence for row in rows if row.in_file and row.sequence > len(lines)]
    found += [f"{_numbers(missing)} missing at its end"] if missing else []
    beyond = [number for number in there if number not in known]
    found += [f"{_numbers(beyond)} unknown to the journal: was it restored from an older backup?"] if beyond else []
    return found


def _broken_links(lines: Iterable[bytes], name: str) -> list[str]:
    """Return the first place where a chain is broken, if any: all lines after it are in doubt."""
    previous = BEGINNING
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            missing = _ENTRIES - set(entry)
            if missing or canonical_json(entry) != line or entry["hash"] != _hash(entry):
                return [f"{name} {number} is not as it was written: its hash is another"]
        except (ValueError, TypeError, RecursionError):
            return [f"{name} {number} is not a line of an audit"]
        if entry["sequence"] != number:
            return [f"{name} {number} has the sequence {entry['sequence']}: lines are missing, added or moved there"]
        if entry["previous"] != previous:
            return [f"{name} {number} does not follow the line before it"]
        previous = entry["hash"]
    return []


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json({key: value for key, value in entry.items() if key != "hash"})).hexdigest()


def _sequence(line: bytes) -> int:
    try:
        return int(json.loads(line)["sequence"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    return f"lines {numbers[0]} to {numbers[-1]} are"
