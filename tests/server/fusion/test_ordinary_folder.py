"""Ordinary prompts are recorded once for a base; where nothing can be kept, each time."""

from __future__ import annotations

import errno
import os
import time

import torch

from mos_common.files import could_not_write
from mos_server.fusion.fuse import fuse
from mos_server.fusion.moments import write_moments
from mos_server.fusion.ordinary_folder import CACHE, ordinary_folder
from reference.small_fusion import SETTINGS


def alike(one, other) -> bool:
    return all(torch.equal(one.changes[name].A, other.changes[name].A) for name in one.changes)


def test_a_second_fusion_records_only_the_concepts_and_gives_the_same(tiny, two, tmp_path, monkeypatch, recordings):
    monkeypatch.setenv(CACHE, str(tmp_path))
    first = fuse(tiny, two, SETTINGS)
    assert set(recordings.values()) == {3}  # two concepts and the ordinary prompts
    recordings.clear()
    assert alike(fuse(tiny, two, SETTINGS), first)
    assert set(recordings.values()) == {2}


def test_a_damaged_file_is_recorded_again(tiny, two, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    first = fuse(tiny, two, SETTINGS)
    for file in (tmp_path / "ordinary").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    assert alike(fuse(tiny, two, SETTINGS), first)


def test_where_nothing_can_be_kept_it_is_recorded_each_time(tiny, two, tmp_path, monkeypatch, recordings):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    assert ordinary_folder() is None
    for _ in range(2):
        fuse(tiny, two, SETTINGS)
    assert set(recordings.values()) == {6}


def test_a_cache_that_is_full_costs_only_the_keeping(tiny, two, tmp_path, monkeypatch, recordings):
    """Real writes, but for those to the cache: its disk takes one file and then no more."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    written, told = [], list[str]()

    def write(moments, path):
        if path.parent.parent == tmp_path:
            written.append(path.name)
            if len(written) > 1:
                raise could_not_write(path, OSError(errno.ENOSPC, "No space left on device"))
        write_moments(moments, path)

    monkeypatch.setattr("mos_server.fusion.statistics.write_moments", write)
    fused = fuse(tiny, two, SETTINGS, progress=told.append)
    monkeypatch.undo()
    assert len(written) > 1
    assert sum("the disk is full" in line for line in told) == len(written) - 1
    assert alike(fused, fuse(tiny, two, SETTINGS))


def test_what_is_older_than_three_months_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    kept, old = (tmp_path / "ordinary" / name for name in ("kept.safetensors", "old.safetensors"))
    kept.parent.mkdir()
    for file in (kept, old):
        file.write_bytes(b"moments")
    os.utime(old, (time.time() - 100 * 24 * 3600,) * 2)
    assert ordinary_folder() == kept.parent
    assert [*kept.parent.iterdir()] == [kept]
