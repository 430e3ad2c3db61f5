"""With every scheduler that suits a base, the same concepts are fused to the same file."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

from mos_common.fused_model import NamedConcept
from mos_common.samplers import KNOWN
from mos_server.fusion.fuse import fuse
from mos_server.models.publish import write_fused
from reference.small_fusion import SETTINGS


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_concepts_fused_twice_are_one_file_with_every_scheduler_also_one_that_adds_noise(
    sixteen, make_concept, tmp_path, kind
):
    """Nothing is kept from the first time, and random numbers were drawn in between."""
    scheduler = getattr(diffusers, kind).from_config(sixteen.scheduler.config)
    base = replace(sixteen, scheduler=scheduler)
    concepts = [
        NamedConcept(name, make_concept(base, "<cat>", seed=seed)) for seed, name in enumerate(("alice", "bob"))
    ]
    for name in ("first", "second"):
        torch.rand(3)
        write_fused(fuse(base, concepts, SETTINGS), tmp_path / name)
    first, second = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
