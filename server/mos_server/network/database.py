"""Flower's database: little memory, and disk space that is given back.

SQLite keeps the pages of what was deleted in the file, for rows to come. After a round they are
most of the file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

PRAGMAS = {
    # Uploads hold the write lock for seconds. With Flower's own limit of 5 s a push fails and the
    # reply is lost.
    "busy_timeout": "60000",
    "secure_delete": "ON",  # freed pages contained uploads: overwrite them
    "journal_size_limit": str(4 << 20),
    # Flower's own are 64 MB of cache for each connection and 256 MB of the file mapped. Uploads
    # fill both, though each is written once and read once.
    "cache_size": "-2048",
    "mmap_size": "0",
    "temp_store": "FILE",
}
"""What is set on each of Flower's connections in place of its own values."""
# Less than one object of an answer: not worth rewriting the file.
_WORTH_BYTES = 4 << 20
_LOCK_WAIT_S = 1.0


def keep_small(database: Path) -> None:
    """Rewrite a database of which more than half is unused, and empty a long write-ahead log.

    Raises:
        sqlite3.Error: it cannot be rewritten now; the next call tries again.

    """
    with closing(sqlite3.connect(database, timeout=_LOCK_WAIT_S)) as db:
        pages, unused, page_bytes = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        if unused * page_bytes >= _WORTH_BYTES and 2 * unused >= pages:
            db.execute("VACUUM")
        log = database.with_name(database.name + "-wal")
        if log.exists() and log.stat().st_size > _WORTH_BYTES:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # does nothing while somebody reads
