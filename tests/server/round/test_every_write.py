"""A disk that is full at any single write of a round loses nothing: it goes on from there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from mos_common.errors import StateError
from mos_server.state.journal.database import Database
from mos_server.state.records import PUBLISHED

# Whatever changes a disk ends in one of these.
WRITES = [(os, "fsync"), (os, "replace"), (os, "rename"), (tempfile, "mkstemp"), (tempfile, "mkdtemp"), (os, "mkdir")]


class Writes:
    """Counts the writes of a round, and fails number `full`."""

    def __init__(self, full: int, number: int) -> None:
        self.seen = 0
        self._full, self._number = full, number

    def check(self) -> None:
        self.seen += 1
        if self.seen == self._full:
            raise OSError(self._number, os.strerror(self._number), "a file")

    @contextmanager
    def counted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module, name in WRITES:
                patch.setattr(module, name, self._checked(getattr(module, name)))
            real = Database.writing

            @contextmanager
            def writing(database: Database) -> Iterator[object]:
                with database._errors():
                    self.check()
                with real(database) as connection:
                    yield connection

            patch.setattr(Database, "writing", writing)
            yield

    def _checked(self, real: Callable[..., object]) -> Callable[..., object]:
        def function(*args: object, **kwargs: object) -> object:
            self.check()
            return real(*args, **kwargs)

        return function


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("adapter.safetensors", "embeddings.safetensors")]


@pytest.fixture
def members(federation) -> list:
    return [federation.machine(name) for name in ("alice", "bob")]


def one_round(federation, members, network, full: int, number: int) -> tuple[int, list[bytes], int]:
    """Run a round whose write number `full` fails: the writes, the model, how often it paused."""
    shutil.rmtree(federation.state.artefacts.moments)
    name, writes, pauses = federation.ask(wait=2), Writes(full, number), 0
    with writes.counted():
        while True:
            try:
                federation.go_on(name, network(*members))
                break
            except StateError:
                pauses += 1
    assert federation.status(name) == PUBLISHED
    model = federation.state.artefacts.model(name)
    assert not [path for path in model.parent.iterdir() if path.name.startswith(".") or "candidate" in path.name]
    return writes.seen, files(model), pauses


def test_a_round_writes_and_a_full_disk_pauses_it(federation, members, network):
    total, undisturbed, pauses = one_round(federation, members, network, 0, errno.ENOSPC)
    assert total > 20
    assert pauses == 0
    for full in (2, total // 3, total // 2, total - 1):
        _, model, pauses = one_round(federation, members, network, full, errno.ENOSPC)
        assert model == undisturbed
        assert pauses <= 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_every_single_write_may_fail(federation, members, network, number):
    total, undisturbed, _ = one_round(federation, members, network, 0, number)
    paused = 0
    for full in count(1):
        seen, model, pauses = one_round(federation, members, network, full, number)
        assert model == undisturbed, f"after write {full} failed"
        paused += pauses
        if seen < full:  # all writes of a round have failed once
            break
    assert paused > total // 2
