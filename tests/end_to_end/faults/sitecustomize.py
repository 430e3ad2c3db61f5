"""Faults for the processes that a test starts: this folder is on their PYTHONPATH.

    MOS_TEST_KILLS   "module:function:n:when:process;..." - SIGKILL at the n-th call, `before` it or
                     `after` it, in processes whose command line contains `process`
    MOS_TEST_ONCE    a folder: a fault that has happened leaves a file there and is not repeated
    MOS_TEST_CLOCK   a file with seconds by which the wall clock of this process is off
    MOS_TEST_FLOWER  `on-time`: Flower's own clock is not off, so that it misses no heartbeat
    MOS_TEST_TROUBLE a file: while it exists, every write below MOS_TEST_DISK fails with the error
                     whose number it holds, such as that of a full disk
    MOS_TEST_FREE    a file with the share of the disk that is said to be free

The product knows nothing of this: functions are exchanged when their module has been imported.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import importlib.abc
import importlib.util
import io
import os
import shutil
import signal
import sqlite3
import sys
import time
import types
from pathlib import Path

COMMAND = " ".join(sys.orig_argv)


class _Exchange(importlib.abc.MetaPathFinder):
    """Exchange functions of modules as they are imported."""

    def __init__(self, exchanged):
        self.exchanged = exchanged

    def find_spec(self, name, path=None, target=None):
        wanted = [each for each in self.exchanged if each[0] == name]
        if not wanted:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            for _, function, wrap in wanted:
                *owners, last = function.split(".")
                owner = module
                for each in owners:
                    owner = getattr(owner, each)
                setattr(owner, last, wrap(getattr(owner, last)))

        spec.loader.exec_module = exec_module
        return spec


def _killing(number, when, marker):
    def wrap(real):
        calls = 0

        def function(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls != number or marker.exists():
                return real(*args, **kwargs)
            if when == "after":
                real(*args, **kwargs)
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("SIGKILL ends a process")

        return function

    return wrap


def _kills():
    for text in filter(None, os.environ.get("MOS_TEST_KILLS", "").split(";")):
        module, function, number, when, process = text.split(":")
        marker = Path(os.environ["MOS_TEST_ONCE"]) / text.replace("/", "_")
        if process in COMMAND and not marker.exists():
            yield module, function, _killing(int(number), when, marker)


def _shift_clock(file):
    real, seen = time.time, [0.0, 0.0]

    def shift():
        if time.monotonic() - seen[0] > 0.2:
            try:
                seen[:] = [time.monotonic(), float(file.read_text())]
            except (OSError, ValueError):
                seen[0] = time.monotonic()
        return seen[1]

    def unshifted(clock):
        return types.SimpleNamespace(**{**vars(clock), "time": real})

    time.time = lambda: real() + shift()
    # gRPC hands its deadlines to C code, whose clock is not shifted.
    yield from ((f"grpc.{module}", "time", unshifted) for module in ("_channel", "aio._utils"))
    if os.environ.get("MOS_TEST_FLOWER") != "on-time":
        yield "flwr.supercore.date", "now", lambda now: lambda: now() + datetime.timedelta(seconds=shift())


def _spoil_disk(trouble, disk):
    """Refuse new files and folders and every opening for writing, but not what overwrites a file.

    SQLite writes in C, so a transaction of the journal is refused as a whole.
    """
    real_open, real_os_open, real_mkdir = io.open, os.open, os.mkdir

    def check(path):
        if not isinstance(path, (str, Path)) or not str(path).startswith(disk):
            return
        try:
            descriptor = real_os_open(trouble, os.O_RDONLY)
        except FileNotFoundError:
            return
        number = int(os.read(descriptor, 20))
        os.close(descriptor)
        raise OSError(number, os.strerror(number), str(path))

    def open_(file, mode="r", *args, **kwargs):
        if set(mode) & set("wxa"):
            check(file)
        return real_open(file, mode, *args, **kwargs)

    def os_open(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and not str(path).endswith("lock"):
            check(path)
        return real_os_open(path, flags, *args, **kwargs)

    def mkdir(path, *args, **kwargs):
        check(path)
        return real_mkdir(path, *args, **kwargs)

    builtins.open = io.open = open_
    os.open, os.mkdir = os_open, mkdir

    def writing(real):
        @contextlib.contextmanager
        def refused(self):
            try:
                check(f"{disk}/server.db")
            except OSError as error:
                with self._errors():
                    raise sqlite3.OperationalError("database or disk is full") from error
            with real(self) as connection:
                yield connection

        return refused

    return "mos_server.state.journal.database", "Database.writing", writing


def _fill_disk(file):
    real = shutil.disk_usage

    def disk_usage(path):
        usage = real(path)
        return usage._replace(free=int(usage.total * float(file.read_text()))) if file.exists() else usage

    shutil.disk_usage = disk_usage


exchanged = list(_kills())
if free := os.environ.get("MOS_TEST_FREE"):
    _fill_disk(Path(free))
if clock := os.environ.get("MOS_TEST_CLOCK"):
    exchanged.extend(_shift_clock(Path(clock)))
if trouble := os.environ.get("MOS_TEST_TROUBLE"):
    exchanged.append(_spoil_disk(trouble, os.environ["MOS_TEST_DISK"]))
if exchanged:
    sys.meta_path.insert(0, _Exchange(exchanged))
