"""Damage good files: in their bytes, in their JSON, and in the header of safetensors."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, 1e-320)
TEXTS = ("", "\0", "../../etc/passwd", "<cat>", "\u202e", "\ud800", "é" * 300, "9" * 5000, "NaN", "(a+)+b")
VALUES: tuple[Any, ...] = (None, True, False, [], {}, float("nan"), float("inf"), *NUMBERS, *TEXTS)


@st.composite
def damaged(draw: Any, seeds: tuple[bytes, ...]) -> bytes:
    """Return one of the good files, changed."""
    data = draw(st.sampled_from(seeds))
    for change in draw(st.lists(st.sampled_from((bytes_changed, json_changed)), min_size=1, max_size=3)):
        data = change(draw, data)
    return data


def bytes_changed(draw: Any, data: bytes) -> bytes:
    """Change, insert, repeat or drop some bytes anywhere."""
    start = draw(st.integers(0, len(data)))
    end = min(len(data), start + draw(st.integers(0, 16)))
    new = draw(st.one_of(st.binary(max_size=8), st.sampled_from((b"\xff" * 8, b"\0" * 8, data[start:end] * 50, b""))))
    rest = draw(st.sampled_from((data[end:], b"", data)))
    return data[:start] + new + rest


def json_changed(draw: Any, data: bytes) -> bytes:
    """Change a value of a JSON text, or of the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header, rest = (data[8 : 8 + size], data[8 + size :]) if data[8:9] == b"{" else (data, None)
    try:
        value = json.loads(header)
    except (ValueError, RecursionError):
        return bytes_changed(draw, data)
    text = json.dumps(_changed(draw, value)).encode("utf-8", "surrogatepass")
    return text if rest is None else len(text).to_bytes(8, "little") + text + rest


def _changed(draw: Any, value: Any) -> Any:
    """Replace something in a value: itself, an entry, a key; or nest it deeply."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from((*VALUES, nested(value, 50), [value] * 20)))
    where = draw(st.sampled_from(inside))
    changed = {**value} if isinstance(value, dict) else [*value]
    if isinstance(changed, dict) and draw(st.booleans()):
        moved = changed.pop(where)
        return changed if draw(st.booleans()) else changed | {draw(st.sampled_from(TEXTS)): moved}
    changed[where] = _changed(draw, value[where])
    return changed


def nested(value: Any, depth: int) -> Any:
    """Return a value inside `depth` lists."""
    for _ in range(depth):
        value = [value]
    return value
