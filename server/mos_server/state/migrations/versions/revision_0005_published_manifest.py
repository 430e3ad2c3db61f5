"""A published round keeps the digest of its manifest, and every round when it was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"


def upgrade() -> None:
    """Add `manifest` and `clock` to the rounds; those of earlier releases have neither."""
    op.add_column("rounds", sa.Column("manifest", sa.Text))
    op.add_column("rounds", sa.Column("clock", sa.JSON(none_as_null=True)))
