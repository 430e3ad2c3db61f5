"""Artefacts in an S3-compatible store, below one prefix of a bucket, through fsspec.

Endpoint, region and credentials are where its library looks for them: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ~/.aws. One object is written whole or not at all;
`put_new` writes it only where none is, and of two who try at once one does.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mos_common.errors import RequestError, StateError

_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*")
_TAKEN = {"PreconditionFailed", "412"}
_CONNECT_S, _READ_S = 10, 60
_AT_ONCE = 1000  # how many objects one request may delete


class StoreError(StateError):
    """The store cannot be used at the moment: what is in it is not lost."""


@dataclass(frozen=True)
class Stored:
    """An object: its size in bytes, and when it was written, in seconds since the epoch."""

    size: int
    modified: float


@dataclass(frozen=True)
class Store:
    """What lies below `url`, by key: `models/round-001/manifest.json`.

    Every call raises StoreError if the store cannot be used.
    """

    url: str

    def put(self, key: str, data: bytes) -> None:
        """Write an object, over what is there."""
        with self._errors(key):
            self._files.pipe_file(self._path(key), data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless one is there (If-None-Match: *); return whether it was written."""
        with self._errors(key):
            try:
                self._files.pipe_file(self._path(key), data, mode="create")
            except OSError as error:
                if _code(error) not in _TAKEN:
                    raise
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file, over what is there."""
        with self._errors(key):
            self._files.put_file(str(path), self._path(key))

    def get(self, key: str) -> bytes | None:
        """Return an object, or None if there is none."""
        with self._errors(key):
            try:
                return bytes(self._files.cat_file(self._path(key)))
            except FileNotFoundError:
                return None

    def get_file(self, key: str, path: Path) -> None:
        """Write an object to a file."""
        with self._errors(key):
            self._files.get_file(self._path(key), str(path))

    def entries(self, prefix: str) -> dict[str, Stored]:
        """Return every object whose key begins with `prefix`, sorted by key."""
        with self._errors(prefix):
            # A folder of `find` ends at a slash: what begins with half a name is filtered here.
            folder = self._path(prefix.rpartition("/")[0])
            try:
                found = self._files.find(folder, detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self._path(""))
        objects = {
            name[cut:]: Stored(int(each["size"]), each["LastModified"].timestamp()) for name, each in found.items()
        }
        return {key: objects[key] for key in sorted(objects) if key.startswith(prefix)}

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects, in the order that is given; one that is gone is no error."""
        every = list(keys)
        with self._errors(every[0] if every else ""):
            for i in range(0, len(every), _AT_ONCE):
                self._files.rm([self._path(key) for key in every[i : i + _AT_ONCE]])

    @cached_property
    def _files(self) -> Any:
        try:
            import s3fs
        except ModuleNotFoundError as error:
            raise StateError(
                f"the artefacts are in {self.url}, and {error.name} is not installed: "
                "pip install 'federated-mix-of-show[s3]'"
            ) from error
        # Others write too: a listing of a minute ago is of no use.
        times = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs=times)

    def _path(self, key: str) -> str:
        return f"{self.url.removeprefix('s3://')}/{key}"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError

        try:
            yield
        except (OSError, BotoCoreError, TimeoutError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(
                f"{self.url}/{key} cannot be used ({reason}): does the store run, and may these credentials read and "
                "write there? Nothing that was kept before is lost"
            ) from error


def checked_store(text: str) -> str:
    """Return the address of a store, without a slash at its end.

    Raises:
        RequestError: it is no such address.

    """
    url = text.rstrip("/")
    if not _ADDRESS.fullmatch(url):
        raise RequestError(f"--artefacts {text!r}: expected s3://BUCKET/PREFIX, of letters, digits, '.', '_' and '-'")
    return url


def check_store(url: str) -> None:
    """Check that a new federation can keep its artefacts at `url`.

    Raises:
        StateError: it cannot be used, is not empty, or writes an object over another when asked
            not to.

    """
    store = Store(url)
    if there := list(store.entries("")):
        raise StateError(f"{url} is not empty ({there[0]}): give each federation a prefix of its own")
    probe = f"probe-{secrets.token_hex(8)}"
    try:
        if not store.put_new(probe, b"first") or store.put_new(probe, b"second") or store.get(probe) != b"first":
            raise StateError(
                f"{url} ignores If-None-Match, so two servers could publish one round: use a store that honours it"
            )
    finally:
        with suppress(StoreError):
            store.delete([probe])


def _code(error: BaseException) -> str:
    """Return the store's own name for an error: s3fs keeps it in the cause."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))
