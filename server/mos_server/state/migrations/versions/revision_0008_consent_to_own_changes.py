"""An upload keeps whether its participant agreed that its own changes are published."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add `own` to the uploads; nobody has agreed to anything in those of earlier releases."""
    op.add_column("uploads", sa.Column("own", sa.Integer, nullable=False, server_default="0"))
