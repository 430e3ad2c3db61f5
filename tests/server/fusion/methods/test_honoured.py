"""No option is ignored: every setting and every weight changes the model, or is refused."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import pytest
import torch

from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.settings import settings_from_json
from mos_server.cli.main import app
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods import METHODS, method_named
from mos_server.fusion.methods.lbfgs import lbfgs_layer
from mos_server.fusion.methods.method import Option
from mos_server.fusion.settings import FusionSettings
from reference import dense

QUICK = {
    "contexts": ["V"],
    "ordinary": ["a tree"],
    "steps": 2,
    "text_iterations": 2,
    "unet_iterations": 2,
    "iterations": 2,
}
# Another value of every setting of every method.
OTHER = {
    "batch": 1,
    "cap": 0.01,
    "contexts": ["V in a forest"],
    "density": 0.9,
    "guidance": 1.5,
    "iterations": 5,
    "learning_rate": 1e-3,
    "least_share": 1.0,
    "margin": 1e4,
    "norm_weight": 1e4,
    "ordinary": ["a red car"],
    "preserve": 0.1,
    "preset": "faithful",
    "ridge": 0.3,
    "ridge_kind": "diagonal",
    "rows": "words",
    "seed": 7,
    "sharpen": 2.0,
    "steps": 3,
    "sum_weight": 0.2,
    "text_inputs": "own",
    "text_iterations": 5,
    "towards": 0.0,
    "unconditional": True,
    "unet_inputs": "fused",
    "unet_iterations": 5,
}
SPEED_ALONE = {"batch"}
WHO_IS_IN = {"least_share"}  # tests/server/fusion/test_leaving_out.py: it decides who is fused, not how
WEIGHTS = {"<alice/cat>": 5.0}
SETTINGS = [(name, each.name) for name in METHODS for each in fields(method_named(name).settings) if each.name in OTHER]


def quick(name: str, **other: object):
    kind = method_named(name).settings
    known = {each.name for each in fields(kind)}
    return settings_from_json(kind, {key: value for key, value in QUICK.items() if key in known} | other)


def differ(one, other) -> bool:
    assert one.changes.keys() == other.changes.keys()
    return any(
        not torch.allclose(pair.change(), other.changes[name].change(), rtol=1e-3, atol=1e-7)
        for name, pair in one.changes.items()
    )


@pytest.fixture(scope="module")
def small(random_base, make_concept):
    """A base of eight channels, and two concepts of it: a fusion takes half a second."""
    base = random_base(width=8)
    cat, dog = (make_concept(base, name, seed=seed, rank=seed + 1) for seed, name in enumerate(("<cat>", "<dog>"), 1))
    return base, [NamedConcept("alice", cat), NamedConcept("bob", dog)]


@pytest.fixture(scope="module")
def made(small):
    """The model of each method with quick settings, made once."""
    return cache(lambda name: fuse(*small, quick(name)))


def test_another_value_is_known_for_every_setting():
    assert {each.name for name in METHODS for each in fields(method_named(name).settings)} == OTHER.keys()


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting_of_every_method_changes_the_model(small, made, name, setting):
    changed = differ(made(name), fuse(*small, quick(name, **{setting: OTHER[setting]})))
    assert changed == (setting not in SPEED_ALONE | WHO_IS_IN)


@pytest.mark.parametrize("name", METHODS)
def test_weights_change_the_model_or_are_refused_by_name(small, made, name):
    if Option.WEIGHTS in method_named(name).honours:
        assert differ(made(name), fuse(*small, quick(name), weights=WEIGHTS))
        return
    with pytest.raises(RequestError, match=rf"^method {name} does not use --weight: leave it out.*gradient, average"):
        fuse(*small, quick(name), weights=WEIGHTS)
    fuse(*small, quick(name), weights={"<alice/cat>": 1.0})


@pytest.mark.parametrize("name", METHODS)
def test_options_that_a_method_ignores_are_refused_before_a_round_is_asked_for(name):
    honours = method_named(name).honours
    for option, given in {Option.WEIGHTS: {"weights": ["<alice/cat>=2"]}, Option.WORKERS: {"workers": "2"}}.items():
        if option in honours:
            assert FusionSettings().changed(method=name, **given).to_json()
            continue
        with pytest.raises(RequestError, match=f"method {name} does not use {option}"):
            FusionSettings().changed(method=name, **given)


def test_a_federation_s_weights_are_not_dropped_by_a_method_that_has_none():
    kept = FusionSettings(weights={"<alice/cat>": 2.0}, workers="2")
    with pytest.raises(RequestError, match="method custom-diffusion does not use --weight"):
        kept.changed(method="custom-diffusion")
    without = kept.changed(method="custom-diffusion", weights=["<alice/cat>=1"])
    assert without.to_json() == {"method": "custom-diffusion"}
    assert kept.changed(method="sum").to_json() == {"method": "sum", "weights": {"<alice/cat>": 2.0}}


@pytest.mark.parametrize("name", METHODS)
def test_moments_are_kept_or_refused_by_name(tmp_path, name):
    if Option.MOMENTS in method_named(name).honours:
        return
    with pytest.raises(RequestError, match=f"method {name} does not use --moments: .*does: gradient"):
        app(
            ["fuse", "cat.safetensors", "--method", name, "--moments", str(tmp_path), "--out", str(tmp_path / "out")],
            standalone_mode=False,
        )


def test_a_concept_s_weight_is_that_of_its_rows_in_the_least_squares_of_the_paper():
    """Against dense least squares in which the weight multiplies the concept's terms."""
    generator = torch.Generator().manual_seed(3)
    W0 = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    rows = [torch.randn(40, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    changes = [0.3 * torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights = [4.0, 1.0, 0.25]
    roots = [(weight / len(part)) ** 0.5 for weight, part in zip(weights, rows, strict=True)]
    X = torch.cat([root * part for root, part in zip(roots, rows, strict=True)])
    Y = torch.cat([root * part @ own.T for root, part, own in zip(roots, rows, changes, strict=True)])
    expected = torch.linalg.lstsq(X, Y).solution.T
    torch.testing.assert_close(lbfgs_layer(W0, changes, rows, 500, weights), expected, rtol=1e-4, atol=1e-4)
    alike = dense.solve(rows, changes, rows[0], ridge=0.0, preserve=0.0)
    assert not torch.allclose(expected, alike, atol=1e-2)
