"""Many participants in one round, each killed at most once: the model is the undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from end_to_end.many import ENVIRONMENT, Figures, crowd_round, make_federation, running_crowd, stock_round
from mos_bench.processes import Processes
from mos_common.digests import digest_of_bytes

# Drawings of one step, and two seconds of what would be tuning: a kill finds somebody at it.
QUICKLY = ("--pull-every", "0.5", "--think", "2", "--scoring-steps", "1")
# Drawings of four steps: 64 participants who draw with twenty keep two cores busy for half an hour.
DRAWN = ("--scoring-steps", "4")


def model_of(figures: Figures, count: int) -> str:
    """Return the digest of a model, in which everybody's concept is and was scored."""
    manifest = json.loads(figures.manifest)
    assert len(manifest["concepts"]) == count
    assert all(concept["identity"] is not None for concept in manifest["concepts"])
    assert not manifest["excluded"]
    return digest_of_bytes(figures.manifest)


def test_eight_of_whom_three_are_killed_make_the_undisturbed_model(tiny, tmp_path: Path):
    """Both rounds at the same time: who was killed is away for twenty seconds."""
    federations = [make_federation(tmp_path / name, 8, tiny) for name in ("killed", "undisturbed")]
    kills = ("--kill-every", "1", "--kill-at-most", "3")
    with (
        Processes(ENVIRONMENT) as processes,
        running_crowd(processes, federations[0], *QUICKLY, *kills) as killed,
        running_crowd(processes, federations[1], *QUICKLY) as undisturbed,
    ):
        pass
    assert len(set(killed.killed)) == 3
    assert model_of(killed, 8) == model_of(undisturbed, 8)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_sixty_four_in_one_process_one_killed_every_ten_seconds(tiny, tmp_path: Path):
    undisturbed = crowd_round(make_federation(tmp_path / "undisturbed", 64, tiny), *DRAWN)
    kills = ("--kill-every", "10", "--think", "12")
    killed = crowd_round(make_federation(tmp_path / "killed", 64, tiny), *DRAWN, *kills)
    assert len(set(killed.killed)) == len(killed.killed) > 1
    assert model_of(killed, 64) == model_of(undisturbed, 64)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_sixteen_stock_supernodes_one_killed_every_ten_seconds(tiny, tmp_path: Path):
    undisturbed = stock_round(make_federation(tmp_path / "undisturbed", 16, tiny))
    killed = stock_round(make_federation(tmp_path / "killed", 16, tiny), kill_every_s=10)
    assert len(set(killed.killed)) == len(killed.killed) > 1
    assert model_of(killed, 16) == model_of(undisturbed, 16)
