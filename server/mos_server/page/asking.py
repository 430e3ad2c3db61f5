"""The form that asks for a round, as the command that it equals."""

from __future__ import annotations

from pathlib import Path

from mos_common.errors import RequestError
from mos_common.pages.actions import Sent
from mos_server.round.asking import duration_s

_DEFAULTS = {"wait": "1", "share": "0.5", "grace": "1h", "deadline": "2h", "scoring": "1h", "flag-loss": "0.05"}
_DURATIONS = frozenset({"grace", "deadline", "scoring"})
_NUMBERS = frozenset({"share", "flag-loss", "min-identity"})
FIELDS = {**_DEFAULTS, "min-identity": "", "method": ""}
"""Fields of the form whose names are flags of `mos-server round`, and what they hold at first."""


def round_words(state: Path, sent: Sent) -> tuple[str, ...]:
    """Return the words of `mos-server round` for a form; what is the default is left out.

    Raises:
        RequestError: a field is not what its flag takes.

    """
    words = ["round", str(state)]
    for flag, default in FIELDS.items():
        text = sent.text(flag, default)
        if text in ("", default):
            continue
        if flag in _DURATIONS:
            duration_s(text, f"--{flag}")
        elif flag in _NUMBERS:
            _number(flag, text)
        words += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    for line in filter(None, map(str.strip, sent.text("set", "").splitlines())):
        words += [f"--set={line}"] if line.startswith("-") else ["--set", line]
    for flag in ("review", "keep-all"):
        words += [f"--{flag}"] if sent.text(flag, "") else []
    return (*words, "--no-follow")


def _number(flag: str, text: str) -> None:
    try:
        float(text)
    except ValueError:
        raise RequestError(f"--{flag} {text[:40]!r}: expected a number") from None
