"""Index notes by round: each follower of a round asks for new notes twice a second."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the index."""
    op.create_index("notes_of_a_round", "notes", ["round", "id"])
