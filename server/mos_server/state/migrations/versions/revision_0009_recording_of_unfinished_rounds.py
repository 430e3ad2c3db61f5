"""A round that an earlier release began, or held back, is fused as that release would have."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

# The defaults until then. A round keeps only what differs from the defaults.
BEFORE = {
    "contexts": [
        "photo of a V",
        "V",
        "V on a white background",
        "V on a red background",
        "V on a green background",
        "V on a yellow background",
        "V on a teal background",
        "V on the beach",
        "V in the snow",
        "V at night",
        "V in a meadow",
        "V at sunset",
        "a smiling V in the sea",
        "V on the left and a tree on the right",
        "a house on the left and V on the right",
        "V with glasses",
    ],
    "steps": 20,
    "guidance": None,
    "sharpen": 1.0,
    "ridge": 0.03,
    "preserve": 1.0,
}
TO_BE_PUBLISHED = ("asked", "collecting", "fusing", "scoring", "held back")


def upgrade() -> None:
    """Write the defaults of that time into the settings of such rounds, for gradient fusion."""
    connection = op.get_bind()
    rounds = sa.table("rounds", sa.column("id"), sa.column("status"), sa.column("settings"))
    kept = connection.execute(
        sa.select(rounds.c.id, rounds.c.settings).where(rounds.c.status.in_(TO_BE_PUBLISHED))
    ).all()
    for name, text in kept:
        settings = json.loads(text)
        fusion = settings.get("fusion") or {}
        if fusion.get("method", "gradient") != "gradient":
            continue
        settings["fusion"] = fusion | {"settings": BEFORE | (fusion.get("settings") or {})}
        connection.execute(rounds.update().where(rounds.c.id == name).values(settings=json.dumps(settings)))
