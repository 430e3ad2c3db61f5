"""The states that earlier releases left behind: unpacked, and moved to where a test wants them."""

from __future__ import annotations

import sqlite3
import tarfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ORIGIN = "/srv/federation"
FLEET_PORT, MOS_PORT = 39092, 39093


@dataclass(frozen=True)
class StoredFederation:
    """A server and two participants, alice and bob, as 0.1.0 left them.

    round-001 is published and downloaded by both. round-002 is unfinished: it has alice's concept
    and waits for bob's.
    """

    folder: Path

    @property
    def server(self) -> Path:
        """The operator's state folder."""
        return self.folder / "server"

    def move_here(self, fleet_port: str, mos_port: str) -> None:
        """Replace folders and ports in the files, and the time at which the round began."""
        texts = [self.server / "config.json", *self.folder.glob("participants/*/kit.json")]
        texts += [*self.folder.glob("participants/*/state/*.json")]
        for file in texts:
            text = file.read_text().replace(ORIGIN, str(self.folder))
            file.write_text(text.replace(str(FLEET_PORT), fleet_port).replace(str(MOS_PORT), mos_port))
        with closing(sqlite3.connect(self.server / "server.db")) as journal:
            journal.execute("UPDATE rounds SET asked = ? WHERE status = 'collecting'", (time.time(),))
            journal.commit()


def unpack_0_1_0(folder: Path) -> StoredFederation:
    """Unpack the state folders of release 0.1.0 into `folder`."""
    with tarfile.open(Path(__file__).parent / "data" / "state-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return StoredFederation(folder / "federation")
