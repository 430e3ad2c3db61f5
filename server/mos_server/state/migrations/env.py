"""Run the migrations, inside the transaction that opened the journal; alembic calls this file."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
