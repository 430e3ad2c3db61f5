"""Fixtures of the participant's side: a `mos.v1` server on loopback, and command lines."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mos_client.cli.main import app
from mos_client.federation.enrolment import Enrolment, enrol
from mos_common.kit import Kit
from mos_common.shell import run
from mos_common.signing import sign_model
from mos_server.network.calls import CallLimits
from mos_server.network.service import MosService
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, RoundSettings
from serving import serving


@dataclass
class Operator:
    """A server that can be stopped, started again on its port, and made to fail."""

    state: State
    journal: Journal
    port: int = 0
    server: ExitStack | None = None
    service: Any = None
    limits: CallLimits | None = None
    fetched: list[tuple[str, int]] = field(default_factory=list)  # file and offset of every Fetch
    faults: dict[str, Callable] = field(default_factory=dict)  # answers that replace those of describe or fetch
    real: dict[str, Callable] = field(default_factory=dict)

    def start(self) -> None:
        self.faults.clear()
        self.service = MosService(self.state, self.journal, lambda pem, name: None)
        self.real = {"describe": self.service.describe, "fetch": self.service.fetch}
        for name in self.real:  # answers are bound when the server starts, so faults are looked up at each call
            setattr(self.service, name, self._answering(name))
        self.server = ExitStack()
        self.port = self.server.enter_context(serving(self.service, self.state.pki, port=self.port, limits=self.limits))

    def _answering(self, name: str) -> Callable:
        def answer(request: Any, key: str) -> Any:
            if name == "fetch":
                self.fetched.append((request.file, request.offset))
            return self.faults.get(name, self.real[name])(request, key)

        return answer

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
        self.server = None

    def kit(self, name: str = "alice", valid_s: float = 3600.0) -> Kit:
        token, expires = self.journal.participants.invite(name, valid_s=valid_s)
        anchors = self.state.pki.anchors(self.state.config.server_id)
        return Kit(
            server_id=self.state.config.server_id,
            name=name,
            fleet="127.0.0.1:1",
            mos=f"127.0.0.1:{self.port}",
            ca=anchors.authority,
            token=token,
            expires=dt.datetime.fromtimestamp(int(expires), dt.UTC),
            base="ab" * 32,
            base_name="tiny",
            signing_key=anchors.signing_key,
            statements=anchors.statements,
        )

    def publish(self, files: dict[str, bytes]) -> str:
        """Publish a signed model of the next round."""
        round_ = self.journal.rounds.ask(RoundSettings())
        self.write(self.state.artefacts.model(round_.id), files, round_.id)
        sign_model(self.state.artefacts.model(round_.id), self.state.pki.signing_key())
        self.journal.rounds.advance(round_.id, PUBLISHED)
        return round_.id

    @staticmethod
    def write(folder: Path, files: dict[str, bytes], made_in: str = "round-001") -> str:
        """Write a model's folder as the server keeps it; return the digest of its manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        described = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        manifest = json.dumps({"files": described, "concepts": [], "round": made_in}).encode()
        (folder / "manifest.json").write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()


@pytest.fixture
def new_operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Operator]]:
    """Return a function that starts servers, each with its own certificate authority."""
    made: list[Operator] = []

    def new() -> Operator:
        config = ServerConfig(base="tiny", base_fingerprint="ab" * 32)
        state = create_state(tmp_path_factory.mktemp("server") / "state", config)
        made.append(Operator(state, Journal(state.database)))
        made[-1].start()
        return made[-1]

    yield new
    for operator in made:
        operator.stop()
        operator.journal.close()


@pytest.fixture
def operator(new_operator: Callable[[], Operator]) -> Operator:
    """A running server."""
    return new_operator()


@pytest.fixture
def member(operator: Operator, tmp_path: Path) -> Enrolment:
    """Alice, who has enrolled."""
    return enrol(operator.kit(), tmp_path / "alice", lambda line: None)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mos-client", *map(str, words)])
        code = 0
        try:
            run(app)
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return typed
