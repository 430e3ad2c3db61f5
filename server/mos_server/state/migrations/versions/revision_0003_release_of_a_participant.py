"""Remember the release that each participant said it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; what is not known yet is null."""
    op.add_column("participants", sa.Column("release", sa.Text))
