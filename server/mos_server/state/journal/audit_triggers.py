"""What the journal writes down about itself: one event for each change that the audit tells.

Triggers run inside the transaction of the change, whichever method, release or tool made it, so no
change is without its event. `audit.py` turns events into lines of the audit.
"""

from __future__ import annotations

from sqlalchemy import text

from mos_server.state.journal.database import Database
from mos_server.state.journal.postgresql import PostgreSQL

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
_ALWAYS = "1 = 1"
_AGREED = "CASE WHEN NEW.own <> 0 THEN 'own changes may be published' END"

# name: (after which change, when, the columns of the event as SQL)
_EVENTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "invited": ("INSERT ON invitations", _ALWAYS, {"what": "'invited'", "person": "NEW.participant"}),
    "void": ("DELETE ON invitations", "OLD.used IS NULL", {"what": "'kit void'", "person": "OLD.participant"}),
    "enrolled": ("INSERT ON participants", _ALWAYS, {"what": "'enrolled'", "person": "NEW.name", "key": "NEW.key"}),
    "barred": (
        "UPDATE OF revoked ON participants",
        "OLD.revoked IS NULL AND NEW.revoked IS NOT NULL",
        {"what": "'barred'", "person": "NEW.name", "key": "NEW.key"},
    ),
    "asked": (
        "INSERT ON rounds",
        _ALWAYS,
        {"what": "'round asked'", "round": "NEW.id", "text": "CAST(NEW.settings AS TEXT)"},
    ),
    "moved": (
        "UPDATE OF status ON rounds",
        "OLD.status <> NEW.status",
        {"what": "'round ' || NEW.status", "round": "NEW.id", "text": "NULLIF(NEW.reason, '')"},
    ),
    "uploaded": (
        "INSERT ON uploads",
        _ALWAYS,
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
        "NEW.identity IS NOT NULL AND COALESCE(CAST(OLD.identity AS TEXT), '') <> CAST(NEW.identity AS TEXT)",
        {"what": "'scored'", **_UPLOAD},
    ),
}


def install_triggers(database: Database) -> None:
    """Create the triggers, or replace those of another release.

    Raises:
        StateError: the database cannot be used.

    """
    if isinstance(database.place, PostgreSQL):
        _install_in_postgresql(database)
    else:
        _install_in_sqlite(database)


def _install_in_sqlite(database: Database) -> None:
    ours = {f"audit_{name}": _sqlite_trigger(f"audit_{name}", *each) for name, each in _EVENTS.items()}
    query = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit\\_%' ESCAPE '\\'")
    if {row["name"]: row["sql"] for row in database.rows(query)} == ours:
        return
    with database.transaction() as db:
        for row in db.execute(query).mappings().all():
            db.exec_driver_sql(f"DROP TRIGGER {row['name']}")
        for statement in ours.values():
            db.exec_driver_sql(statement)


def _install_in_postgresql(database: Database) -> None:
    """Here a trigger calls a function; the database keeps the function's text as it was given."""
    ours = {
        f"audit_{name}": (change.split(" ON ")[1], _body(when, columns))
        for name, (change, when, columns) in _EVENTS.items()
    }
    query = text(
        "SELECT tgname, relname, prosrc, tgenabled FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "JOIN pg_proc ON pg_proc.oid = tgfoid "
        "WHERE relnamespace = current_schema::regnamespace AND left(tgname, 6) = 'audit_'"
    )
    there = database.rows(query)
    # A disabled one is not ours: 'O' is a trigger that fires.
    if {row["tgname"]: (row["relname"], row["prosrc"]) for row in there if row["tgenabled"] == "O"} == ours:
        return
    with database.transaction() as db:
        for row in db.execute(query).mappings().all():
            db.exec_driver_sql(f"DROP TRIGGER {row['tgname']} ON {row['relname']}")
        for name, (change, *_) in _EVENTS.items():
            function = f"audit_{name}"
            db.exec_driver_sql(
                f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $${ours[function][1]}$$"
            )
            db.exec_driver_sql(f"CREATE TRIGGER {function} AFTER {change} FOR EACH ROW EXECUTE FUNCTION {function}()")


def _sqlite_trigger(name: str, change: str, when: str, columns: dict[str, str]) -> str:
    return f"CREATE TRIGGER {name} AFTER {change} WHEN {when} BEGIN {_insert(columns)} END"


def _body(when: str, columns: dict[str, str]) -> str:
    return f"BEGIN IF {when} THEN {_insert(columns)} END IF; RETURN NULL; END"


def _insert(columns: dict[str, str]) -> str:
    values = ", ".join(columns.get(column, "NULL") for column in _COLUMNS)
    return f"INSERT INTO audit_events ({', '.join(_COLUMNS)}) VALUES ({values});"  # noqa: S608 - texts from this file
