"""Index notes by round: whoever follows a round asks for its new notes twice a second, however many rounds there were."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the index."""
    op.create_index("notes_of_a_round", "notes", ["round", "id"])
