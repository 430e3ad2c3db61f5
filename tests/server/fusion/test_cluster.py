"""Recording on several workers: the same bits as here, also when one of them dies in the middle."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.errors import FusionError, RequestError
from mos_common.fused_model import NamedConcept
from mos_server.fusion.cluster import Worker, recorder_on
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings

SETTINGS = GradientSettings(contexts=("V", "photo of a V"), ordinary=("",), steps=3, guidance=3.0)


def kill_one_worker_at_work(killed: list[int]) -> None:
    """As soon as one is recording."""
    until = time.monotonic() + 120
    while not killed and time.monotonic() < until:
        for process in psutil.Process().children(recursive=True):
            try:
                if "Worker.record" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return
            except psutil.Error:
                continue
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore")  # of Ray, about itself
def test_two_workers_of_which_one_is_killed_record_the_same_bits(tiny, make_concept, tmp_path):
    """The lost worker's recording is repeated; a worker reports an unusable concept, as here."""
    concepts = [NamedConcept(f"p{i}", make_concept(tiny, "<cat>", seed=i)) for i in range(4)]
    layer = next(layer.name for layer in tiny.layout.attention if layer.name.startswith("unet."))
    pair = concepts[3].concept.pairs[layer]
    overflow = {**concepts[3].concept.pairs, layer: LowRank(pair.A * 1e19, pair.B * 1e19, pair.alpha)}
    concepts[3] = NamedConcept("p3", replace(concepts[3].concept, pairs=overflow))
    here = fuse(tiny, concepts, SETTINGS, moments_dir=tmp_path / "here")
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker_at_work, args=(killed,))
    with recorder_on("2", tiny) as recorder:
        killer.start()
        there = fuse(tiny, concepts, SETTINGS, moments_dir=tmp_path / "there", recorder=recorder)
        killer.join()
    assert len(killed) == 1
    assert there.manifest == here.manifest
    assert there.manifest.excluded[0].token == "<p3/cat>"
    for file in sorted(path.name for path in (tmp_path / "here").iterdir()):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    for name, change in here.changes.items():
        assert torch.equal(change.A, there.changes[name].A) and torch.equal(change.B, there.changes[name].B)


def test_a_worker_with_another_base_says_so(tiny):
    with pytest.raises(FusionError, match="install the same base on every machine"):
        Worker("tiny", "0" * 64, "cpu", "float32", 1)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "http://host"])
def test_workers_that_are_no_number_and_no_cluster_are_refused(tiny, workers):
    with pytest.raises(RequestError, match="expected auto, a number"), recorder_on(workers, tiny):
        pass
