"""Cache keys of the bench depend on sampler, scorer and code."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest

from mos_bench.identity.drawing.models import FUSED_BY, FusionSpec, untouched
from mos_bench.identity.drawing.requests import DRAWN_BY, Request
from mos_bench.identity.scoring.claims import WITNESSED_BY
from mos_bench.identity.scoring.scorers import SCORED_BY, EfficientNet, scored_by
from mos_bench.identity.storage.cache import drawn_on
from mos_bench.teach import TAUGHT_BY, taught_on
from mos_common.digests import digest_of_code, modules_of
from mos_common.drawing import Drawing
from mos_server.fusion.methods.gradient import GradientSettings


@pytest.fixture
def euler(sixteen):
    """The random base with another sampler: the same base, other drawings."""
    return replace(sixteen, scheduler=diffusers.EulerDiscreteScheduler.from_config(sixteen.scheduler.config))


def test_another_sampler_is_another_drawing_fused_model_and_lesson(sixteen, euler, make_concept):
    assert euler.fingerprint == sixteen.fingerprint
    requests = [Request(untouched(), "a cat", 0, Drawing(), base=drawn_on(base)).key for base in (sixteen, euler)]
    assert requests[0] != requests[1]
    spec = FusionSpec((make_concept(sixteen),), GradientSettings())
    assert spec.name(sixteen) != spec.name(euler)
    assert taught_on(sixteen) != taught_on(euler)


@pytest.mark.parametrize("modules", [DRAWN_BY, FUSED_BY, SCORED_BY, WITNESSED_BY, TAUGHT_BY])
def test_the_modules_that_decide_are_there_and_named_once(modules):
    assert len(digest_of_code(modules)) == 64
    assert len(set(modules)) == len(modules)


def test_all_of_fusion_decides_what_a_fused_model_is():
    assert set(modules_of("mos_server.fusion")) <= set(FUSED_BY)


def test_a_score_is_known_by_its_scorer_and_its_code():
    scorer = EfficientNet()
    assert scored_by(scorer).startswith(scorer.name)
    assert digest_of_code(SCORED_BY) in scored_by(scorer)
