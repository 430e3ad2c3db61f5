"""Cache keys of the bench depend on sampler, scorer and code."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest

from mos_bench.identity.drawing.models import FUSED_BY, FusionSpec, untouched
from mos_bench.identity.drawing.requests import DRAWN_BY, Request
from mos_bench.identity.scoring.claims import WITNESSED_BY
from mos_bench.identity.scoring.scorers import SCORED_BY, EfficientNet, scored_by
from mos_bench.identity.storage.cache import drawn_on
from mos_bench.several.ways import SEVERAL_BY
from mos_bench.teach import TAUGHT_BY, taught_on
from mos_common.digests import digest_of_code, modules_of
from mos_common.drawing import Drawing
from mos_server.fusion.methods.gradient import GradientSettings

# Modules that are imported but do not decide: files, errors, output, and what keys hold otherwise.
DO_NOT_DECIDE = {
    "mos_common.drawing_steps",  # it looks on
    "mos_common.aspect",  # it refuses
    *("mos_common.digests", "mos_common.errors", "mos_common.files", "mos_common.progress", "mos_common.shell"),
    *("mos_common.fingerprint", "mos_common.fingerprint_keys", "mos_common.presets", "mos_common.settings"),
    *("mos_common.concept_file", "mos_common.fused_model", "mos_common.identity_scores", "mos_common.names"),
    # Where a base's files are and what they may be: it is known by the fingerprint of what is read.
    *(f"mos_common.base_{name}" for name in ("configuration", "files", "hub", "names", "weights")),
    *("mos_common.checkpoint_kinds", "mos_common.checkpoint_schedule", "mos_common.file_beginnings"),
    *(
        "mos_common.flags",
        "mos_common.libraries",
        "mos_common.safe_reading",
        "mos_common.single_file_base",
        "mos_common.text_files",
        "mos_common.texts",
    ),
    # nothing here follows pictures
    *(f"mos_common.control.{name}" for name in ["adapters", "condition", "drawn", "residuals"]),
    "mos_common.control",
    "mos_common.own.attach",  # nothing here is drawn with own changes
    *("mos_tiny", "mos_tiny.recipe"),
}
# What else is imported and does not decide, by the module that records.
ALSO = {
    # The cache makes keys; composed pictures of measured concepts teach witnesses nothing.
    "mos_bench.identity.scoring.claims": {
        *("mos_bench.identity.storage.cache", "mos_bench.pictures", "mos_tiny.recipe.demonstration"),
        *("mos_common.layers", "mos_common.samplers"),  # nothing is drawn
    },
    # Fused changes and words are in the key by their digests.
    "mos_bench.identity.drawing.requests": {
        *("mos_bench.identity.storage.sharing", "mos_common.concept", "mos_server.fusion.fuse"),
        *("mos_server.fusion.methods.method", "mos_server.fusion.statistics"),
    },
    "mos_bench.identity.scoring.scorers": set[str](),
    # Prompts, regions, changes and words are in the key, by themselves or by their digests.
    "mos_bench.several.ways": {
        *("mos_bench.identity.storage.sharing", "mos_bench.identity.concepts.bench_concepts", "mos_bench.pictures"),
        *("mos_common.concept", "mos_server.fusion.fuse", "mos_server.fusion.methods.method"),
        *("mos_server.fusion.statistics", "mos_tiny.recipe.world"),
    },
    "mos_bench.teach": {"mos_common.regions", "mos_common.shapes"},  # a probe draws without regions
}


@pytest.fixture
def euler(sixteen):
    """The random base with another sampler: the same base, other drawings."""
    return replace(sixteen, scheduler=diffusers.EulerDiscreteScheduler.from_config(sixteen.scheduler.config))


def test_another_sampler_changes_the_keys_of_drawings_fused_models_and_tuned_identities(sixteen, euler, make_concept):
    assert euler.fingerprint == sixteen.fingerprint
    requests = [Request(untouched(), "a cat", 0, Drawing(), base=drawn_on(base)).key for base in (sixteen, euler)]
    assert requests[0] != requests[1]
    spec = FusionSpec((make_concept(sixteen),), GradientSettings())
    assert spec.name(sixteen) != spec.name(euler)
    assert taught_on(sixteen) != taught_on(euler)


@pytest.mark.parametrize("modules", [DRAWN_BY, FUSED_BY, SCORED_BY, SEVERAL_BY, WITNESSED_BY, TAUGHT_BY])
def test_listed_modules_exist_and_are_listed_once(modules):
    assert len(digest_of_code(modules)) == 64
    assert len(set(modules)) == len(modules)


@pytest.mark.parametrize(
    ("root", "modules"), [*zip(sorted(ALSO), (DRAWN_BY, WITNESSED_BY, SCORED_BY, SEVERAL_BY, TAUGHT_BY), strict=True)]
)
def test_every_module_that_is_imported_decides_or_is_listed_as_one_that_does_not(root, modules):
    reached, waiting = set[str](), [root]
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name)
        if name in {*reached, *DO_NOT_DECIDE, *ALSO[root]} or spec is None or spec.origin is None:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mos_"):
                waiting.append(str(node.module))
    assert reached <= set(modules), sorted(reached - set(modules))


def test_fused_models_are_keyed_by_all_modules_of_fusion():
    assert set(modules_of("mos_server.fusion")) <= set(FUSED_BY)


def test_the_key_of_a_score_has_its_scorer_and_its_code():
    scorer = EfficientNet()
    assert scored_by(scorer).startswith(scorer.name)
    assert digest_of_code(SCORED_BY) in scored_by(scorer)
