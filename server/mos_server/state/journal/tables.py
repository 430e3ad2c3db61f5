"""The journal's tables.

To change a table, change it here, add a file to `migrations/versions` that does the same, and raise
REVISION. Never edit an old migration: journals have already run it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    and_,
)

REVISION = "0009"
"""The newest file in `migrations/versions`, whose tables this code reads and writes."""

metadata = MetaData()


class Prose(TypeDecorator[str]):
    """Sentences, in which strangers' words may stand: PostgreSQL refuses a text with a NUL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        """Put the replacement character where a NUL is."""
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


# Times are in seconds since the epoch.
invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("participant", Text, nullable=False),
    Column("expires", Double, nullable=False),
    Column("used", Double),
)

participants = Table(
    "participants",
    metadata,
    Column("key", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("pem", LargeBinary, nullable=False),
    Column("admitted", Double, nullable=False),
    Column("revoked", Double),
    Column("seen", Double),
    Column("release", Text),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("reason", Prose, nullable=False, server_default=""),
    Column("settings", JSON, nullable=False),
    Column("asked", Double, nullable=False),
    Column("ended", Double),
    Column("manifest", Text),
    Column("clock", JSON(none_as_null=True)),
)

members = Table(
    "members",
    metadata,
    Column("round", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("activity", Prose, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("at", Double, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Text),
    Column("key", Text, nullable=False),
    Column("participant", Text, nullable=False),
    Column("concept", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("received", Double, nullable=False),
    Column("refused", Prose),
    Column("identity", JSON(none_as_null=True)),
    Column("own", Integer, nullable=False, server_default="0"),
)

_IS_FUSED = and_(uploads.c.refused.is_(None), uploads.c.round.is_not(None))
Index(
    "one_name_per_participant",
    uploads.c.round,
    uploads.c.participant,
    uploads.c.concept,
    unique=True,
    sqlite_where=_IS_FUSED,
    postgresql_where=_IS_FUSED,
)

notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("text", Prose, nullable=False),
)
Index("notes_of_a_round", notes.c.round, notes.c.id)

# The audit (`audit.py`). A line of it names people only by seals, which `audit_seals` resolves.
audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("line", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("in_file", Integer, nullable=False, server_default="0"),
)

audit_seals = Table(
    "audit_seals",
    metadata,
    Column("seal", Text, primary_key=True),
    Column("person", Text, nullable=False),
    Column("value", Prose, nullable=False),
    Column("salt", LargeBinary, nullable=False),
)
Index("seals_of_a_person", audit_seals.c.person, audit_seals.c.value)

# Filled by the triggers in `audit_triggers.py`, emptied before each commit.
audit_events = Table(
    "audit_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("what", Text, nullable=False),
    Column("round", Text),
    Column("person", Text),
    Column("key", Text),
    Column("concept", Text),
    Column("digest", Text),
    Column("text", Text),
    Column("bytes", Integer),
)
