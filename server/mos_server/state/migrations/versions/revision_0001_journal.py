"""Create the tables of release 0.1.0.

A journal of that release has these tables but no revision, and is stamped with this one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "invitations",
        sa.Column("token_hash", sa.Text, primary_key=True),
        sa.Column("participant", sa.Text, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.Column("used", sa.Double),
    )
    op.create_table(
        "participants",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("pem", sa.LargeBinary, nullable=False),
        sa.Column("admitted", sa.Double, nullable=False),
        sa.Column("revoked", sa.Double),
        sa.Column("seen", sa.Double),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("asked", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
    )
    op.create_table(
        "members",
        sa.Column("round", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("activity", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("round", sa.Text),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("participant", sa.Text, nullable=False),
        sa.Column("concept", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("refused", sa.Text),
        sa.Column("identity", sa.JSON),
    )
    is_fused = sa.text("refused IS NULL AND round IS NOT NULL")
    op.create_index(
        "one_name_per_participant",
        "uploads",
        ["round", "participant", "concept"],
        unique=True,
        sqlite_where=is_fused,
        postgresql_where=is_fused,
    )
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("round", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
