"""The kills of `test_kills.py`, with the journal in PostgreSQL and the artefacts in a store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from end_to_end.dying import Dying, Kill, warm
from end_to_end.federation import check_nothing_left
from end_to_end.test_kills import AT_ONCE, LATE, ROUND, SERVER
from mos_bench.processes import Processes
from mos_common.errors import StateError
from mos_server.state.folder import DATABASE, open_state
from mos_server.state.journal import Journal
from mos_server.state.published import published_model
from postgresql import Cluster
from s3 import Bucket

STORE = "mos_server.state.store:Store"
IN_THE_STORE = {
    "moments half-way into the store": Kill(f"{STORE}.put_file", ROUND, 2),
    "model half-way into the store": Kill("mos_server.state.stored_models:keep_model", ROUND),
    "manifest not yet in the store": Kill(f"{STORE}.put_new", ROUND),
    "manifest in the store, not in the journal": Kill(f"{STORE}.put_new", ROUND, when="after"),
    "candidate written": LATE["candidate written"],
    "spooled, not journalled": LATE["spooled, not journalled"],
    "in the journal's transaction": LATE["in the journal's transaction"],
    "model asked for": Kill("mos_server.state.published:published_model", SERVER, when="after"),
}


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, bucket: Bucket) -> Dying:
    def elsewhere() -> dict[str, str]:
        return {"journal": cluster.new_database(), "artefacts": bucket.new_prefix()}

    return warm(tmp_path_factory.mktemp("dying"), tuned, elsewhere=elsewhere)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    check_nothing_left()


def test_a_round_in_which_five_processes_are_killed_publishes_the_model_of_an_undisturbed_one(federation, undisturbed):
    kills = [*(LATE[name] for name in AT_ONCE if name != "between rename and journal"), *[_last()]]
    assert federation.run(*kills) == undisturbed
    assert federation.happened() == len(kills), federation.notes()
    assert not (federation.server / DATABASE).exists()
    assert not (federation.server / "concepts").exists()
    # Another machine has the folder's keys and configuration, and nothing of what was made.
    shutil.rmtree(federation.server / "models")
    state = open_state(federation.server)
    with closing(Journal(state.database)) as journal:
        assert (published_model(state, journal, "round-001") / "manifest.json").read_bytes() == undisturbed
        journal.audit.check()


def _last() -> Kill:
    return IN_THE_STORE["manifest in the store, not in the journal"]


def test_a_round_outlives_a_restart_of_postgresql(federation, undisturbed, cluster):
    federation.fresh()
    with Processes(federation.environment()) as processes:
        federation.start(processes)
        federation.ask(processes)
        federation.until(processes, lambda: federation.stands() not in ("", "asked"))
        cluster.stop()
        # The command that follows the round ends; its process ends too, and is started again.
        assert processes.running["operator"].wait(120) == StateError.exit_code
        cluster.start()
        federation.ask(processes)
        federation.finish(processes)
    assert federation.published() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_THE_STORE)
def test_killed_with_a_store_it_publishes_the_model_of_an_undisturbed_one(federation, undisturbed, name):
    assert federation.run(IN_THE_STORE[name]) == undisturbed
    assert federation.happened() == 1, federation.notes()
