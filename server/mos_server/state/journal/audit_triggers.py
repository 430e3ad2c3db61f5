"""What the journal writes down about itself: one event for each change that the audit tells.

Triggers run inside the transaction of the change, whichever method, release or tool made it, so no
change is without its event. `audit.py` turns events into lines of the audit.
"""

from __future__ import annotations

from sqlalchemy import text

from mos_server.state.journal.database import Database

_COLUMNS = ("what", "round", "person", "key", "concept", "digest", "text", "bytes")
_UPLOAD = {
    "round": "NEW.round",
    "person": "NEW.participant",
    "key": "NEW.key",
    "concept": "NEW.concept",
    "digest": "NULLIF(NEW.digest, '')",
    "bytes": "NEW.bytes",
}
_HOW_IT_ENDED = "CASE WHEN NEW.refused IS NULL THEN 'uploaded' ELSE 'refused' END"
_WITHDRAWN_OR_REFUSED = "CASE WHEN NEW.refused = 'withdrawn' THEN 'withdrawn' ELSE 'refused' END"
_REASON = {"text": "NULLIF(NEW.refused, 'withdrawn')"}
_AGREED = "CASE WHEN NEW.own THEN 'own changes may be published' END"

# name: (after which change, when, the columns of the event as SQL)
_EVENTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "invited": ("INSERT ON invitations", "1", {"what": "'invited'", "person": "NEW.participant"}),
    "void": ("DELETE ON invitations", "OLD.used IS NULL", {"what": "'kit void'", "person": "OLD.participant"}),
    "enrolled": ("INSERT ON participants", "1", {"what": "'enrolled'", "person": "NEW.name", "key": "NEW.key"}),
    "barred": (
        "UPDATE OF revoked ON participants",
        "OLD.revoked IS NULL AND NEW.revoked IS NOT NULL",
        {"what": "'barred'", "person": "NEW.name", "key": "NEW.key"},
    ),
    "asked": ("INSERT ON rounds", "1", {"what": "'round asked'", "round": "NEW.id", "text": "NEW.settings"}),
    "moved": (
        "UPDATE OF status ON rounds",
        "OLD.status <> NEW.status",
        {"what": "'round ' || NEW.status", "round": "NEW.id", "text": "NULLIF(NEW.reason, '')"},
    ),
    "uploaded": (
        "INSERT ON uploads",
        "1",
        {"what": _HOW_IT_ENDED, **_UPLOAD, "text": f"COALESCE({_REASON['text']}, {_AGREED})"},
    ),
    "taken": (
        "UPDATE OF round ON uploads",
        "OLD.round IS NULL AND NEW.round IS NOT NULL",
        {"what": "'taken into round'", **_UPLOAD},
    ),
    "refused": (
        "UPDATE OF refused ON uploads",
        "OLD.refused IS NULL AND NEW.refused IS NOT NULL",
        {"what": _WITHDRAWN_OR_REFUSED, **_UPLOAD, **_REASON},
    ),
    "scored": (
        "UPDATE OF identity ON uploads",
        "NEW.identity IS NOT NULL AND OLD.identity IS NOT NEW.identity",
        {"what": "'scored'", **_UPLOAD},
    ),
}


def install_triggers(database: Database) -> None:
    """Create the triggers, or replace those of another release.

    Raises:
        StateError: the database cannot be used.

    """
    ours = {f"audit_{name}": _trigger(f"audit_{name}", *event) for name, event in _EVENTS.items()}
    query = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit\\_%' ESCAPE '\\'")
    if {row["name"]: row["sql"] for row in database.rows(query)} == ours:
        return
    with database.transaction() as db:
        for row in db.execute(query).mappings().all():
            db.exec_driver_sql(f"DROP TRIGGER {row['name']}")
        for statement in ours.values():
            db.exec_driver_sql(statement)


def _trigger(name: str, change: str, when: str, columns: dict[str, str]) -> str:
    values = ", ".join(columns.get(column, "NULL") for column in _COLUMNS)
    insert = f"INSERT INTO audit_events ({', '.join(_COLUMNS)}) VALUES ({values});"  # noqa: S608 - texts from this file
    return f"CREATE TRIGGER {name} AFTER {change} WHEN {when} BEGIN {insert} END"
