"""The cache gives back what was stored, and work is shared."""

from __future__ import annotations

import fcntl
import threading

import torch

from mos_bench.identity.storage.cache import Cache, key_of, picture_bytes, picture_from
from mos_bench.identity.storage.sharing import Sharing


def test_a_cache_returns_what_was_stored(tmp_path):
    cache = Cache(tmp_path / "cache.sqlite")
    picture = (torch.arange(3 * 8 * 8).reshape(3, 8, 8) % 256).float() / 127.5 - 1
    cache.put("drawings", {"a": picture_bytes(picture)})
    assert cache.missing("drawings", ["a", "b", "b"]) == ["b"]
    torch.testing.assert_close(cache.picture("a"), picture)
    torch.testing.assert_close(picture_from(picture_bytes(picture)), picture)
    cache.close()
    assert key_of("a", 1) != key_of("a", 2)


def test_work_that_another_process_has_locked_is_waited_for(tmp_path):
    sharing, finished = Sharing(tmp_path), set()
    done = []
    file = sharing.lock_file("mine").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)

    def other() -> None:
        finished.add("mine")
        file.close()

    threading.Timer(0.2, other).start()
    sharing.all_of("work", ["mine"], key=str, done=finished.__contains__, do=done.append)
    assert done == []
