"""Memory plans: the predicted memory is the real one, and the fastest plan that fits is used."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from mos_client.tuning import memory_plan
from mos_client.tuning.memory_plan import GIB, Plan, choose_plan, kept_bytes, plan_for, step_gib
from mos_client.tuning.offloading import offloaded
from mos_client.tuning.settings import Method, TuningSettings
from mos_common.errors import RequestError


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_counted_on_shapes_is_what_a_real_step_keeps(base, checkpointing):
    """The reference counts real tensors, by the storages that autograd saves."""
    counted = kept_bytes(base, 2, 4, checkpointing)
    real = kept_bytes(base, 2, 4, checkpointing, fake=False)
    assert counted == pytest.approx(real, rel=0.02)


def test_more_pictures_keep_more_and_checkpointing_keeps_less(base):
    one, two, three = (kept_bytes(base, n, 4, False) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.05), "every picture, with a caption of its own, keeps as much"
    assert 1.5 * one < two < 2.1 * one
    assert kept_bytes(base, 2, 4, True) < 0.7 * two


def test_counting_leaves_the_base_as_it_was(tiny):
    weights = {p.data_ptr(): p.clone() for p in tiny.unet.parameters()}
    kept_bytes(tiny, 1, 4, True)
    assert all(torch.equal(p, weights[p.data_ptr()]) for p in tiny.unet.parameters())
    assert not any(p.requires_grad for p in tiny.unet.parameters())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in tiny.unet.modules())


def test_the_fastest_plan_that_fits_is_taken(tiny):
    whole, half, one, least = (step_gib(tiny, n, 4, c) for n, c in ((8, False), (4, False), (1, False), (1, True)))
    assert choose_plan(tiny, 8, 4, whole * 1.01) == Plan(8, gib=whole)
    assert choose_plan(tiny, 8, 4, whole * 0.99) == Plan(4, gib=half)
    assert choose_plan(tiny, 8, 4, one * 0.99).checkpointing, "checkpointing comes last"
    with pytest.raises(RequestError, match=rf"about {least:.1f} GB .* too few"):
        choose_plan(tiny, 8, 4, least * 0.9)


def test_eight_bit_states_are_taken_where_only_they_fit(tiny, monkeypatch):
    monkeypatch.setattr(memory_plan, "_has_bitsandbytes", lambda: True)
    least = step_gib(tiny, 1, 64, True)
    saved = memory_plan.optimiser_saving_gib(tiny, 64)
    plan = choose_plan(tiny, 1, 64, least - saved / 2)
    assert plan.eight_bit
    assert "8-bit AdamW" in str(plan)
    made = []
    optim = types.ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = lambda groups, **settings: made.append((groups, settings))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    plan.optimiser([{"params": []}])
    assert made == [([{"params": []}], {"weight_decay": 0.01})]


def test_without_a_limit_a_cpu_takes_the_whole_batch(tiny):
    assert plan_for(tiny, 8, 4, None) == Plan(8)
    assert plan_for(tiny, 8, 4, 64.0).micro_batch == 8


def test_a_plan_says_itself():
    assert str(Plan(1, checkpointing=True, gib=3.14)) == "1 picture at a time, gradient checkpointing, about 3.1 GB"
    assert str(Plan(4)) == "4 pictures at a time"


def test_weights_moments_and_what_is_kept_add_up(tiny):
    """16 bytes per tuned number (value, gradient, two moments), the rest scaled for workspace."""
    kept, small = kept_bytes(tiny, 1, 1, False) / GIB, step_gib(tiny, 1, 1, False)
    weights = sum(p.numel() * 4 for m in (tiny.unet, tiny.text_encoder) for p in m.parameters()) / GIB
    tuned = memory_plan.tuned_parameters(tiny, 1)
    assert small == pytest.approx(1.15 * (weights + kept) + 16 * tuned / GIB)


def test_parts_that_a_step_does_not_need_wait_off_the_card_and_come_back_to_draw(monkeypatch):
    """No GPU is needed: the base claims to be on one, and modules record where they move."""

    class Part(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def to(self, where):
            moves.append((self.name, str(where)))

    moves: list[tuple[str, str]] = []
    base = types.SimpleNamespace(device=torch.device("cuda"), vae=Part("vae"), text_encoders=[Part("text")])
    rates = {"steps": 1, "batch": 1, "learning_rate_words": 0.1, "learning_rate_unet": 0.1, "noise_offset": 0.0}
    with offloaded(base, TuningSettings(**rates, learning_rate_text=0.1)) as on_gpu, on_gpu():
        moves.append(("drawing", ""))
    assert moves == [("vae", "cpu"), ("vae", "cuda"), ("drawing", ""), ("vae", "cpu"), ("vae", "cuda")]
    moves.clear()
    with offloaded(base, TuningSettings(**rates, learning_rate_text=0.0, method=Method.PLAIN_LORA)):
        pass
    assert moves == [("vae", "cpu"), ("text", "cpu"), ("vae", "cuda"), ("text", "cuda")]
