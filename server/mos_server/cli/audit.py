"""`mos-server audit`: check the audit of a state folder, and list it."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from typing import Annotated, Any

import typer

from mos_common.errors import RequestError, TrustError
from mos_common.files import canonical_json
from mos_common.shell import say
from mos_server.cli.settings import StateFolder
from mos_server.round.asking import duration_s
from mos_server.state.audit import line_time


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server audit federation --since 7d")(audit)


def audit(
    state: StateFolder,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="List from then on: how long ago (12h, 7d), or a date in UTC.", show_default="the beginning"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each line.")] = False,
    head: Annotated[
        str | None,
        typer.Option("--head", help="A head that you noted earlier: it must be in the audit.", show_default="none"),
    ] = None,
) -> None:
    """Check that no line of the audit was changed, removed or moved, and list it.

    The exit code is 8 if the audit does not hold.
    """
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    after = "" if since is None else _moment(since)
    with closing(Journal(open_state(state).database)) as journal:
        last = journal.audit.check()
        rows = journal.audit.rows()
        if head is not None and head not in {row.hash for row in rows}:
            raise TrustError(
                f"the audit has no line with the hash {head[:80]}: it was written anew since you noted that, or "
                "restored from an older backup"
            )
        for entry in journal.audit.entries():
            if entry["at"] >= after:
                say(canonical_json(entry).decode() if as_json else _in_words(entry))
    if not as_json:
        say(f"the audit holds: {len(rows)} lines, head {last.hash}" if last else "the audit holds: it has no line yet")


def _in_words(entry: dict[str, Any]) -> str:
    details = ", ".join(f"{name} {value}" for name, value in entry["details"].items())
    about = " ".join(part for part in (entry.get("who", ""), f"({details})" if details else "") if part)
    return f"{entry['sequence']:>5}  {entry['at']}  {entry['what']}  {about}".rstrip()


def _moment(text: str) -> str:
    """Return a date, or a time ago, as the lines of the audit have it."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=duration_s(text, "--since"))
        except RequestError as error:
            raise RequestError(f"--since {text!r}: expected how long ago (12h, 7d), or a date (2026-01-31)") from error
    return line_time(moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC))
