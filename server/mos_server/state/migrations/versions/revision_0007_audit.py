"""Tables of the audit: its lines, what their seals stand for, and events that have no line yet."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, LargeBinary, Text

revision = "0007"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "audit",
        Column("sequence", Integer, primary_key=True),
        Column("line", Text, nullable=False),
        Column("hash", Text, nullable=False),
        Column("in_file", Integer, nullable=False, server_default="0"),
    )
    op.create_table(
        "audit_seals",
        Column("seal", Text, primary_key=True),
        Column("person", Text, nullable=False),
        Column("value", Text, nullable=False),
        Column("salt", LargeBinary, nullable=False),
    )
    op.create_index("seals_of_a_person", "audit_seals", ["person", "value"])
    op.create_table(
        "audit_events",
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
