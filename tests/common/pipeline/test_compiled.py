"""A compiled model is compiled once: other concepts, prompts and seeds compile nothing again."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from mos_common import MixOfShow

QUICK = {"num_inference_steps": 2, "seed": 1}


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """What is compiled too often is an error, and not silently compiled no more.

    Without handlers, torch does not write its trace, which pytest would collect for a minute.
    """
    trace = logging.getLogger("torch.__trace")
    monkeypatch.setattr(trace, "addHandler", lambda _handler: None)
    monkeypatch.setattr(trace, "handlers", [])
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture
def pipe(sixteen, published) -> MixOfShow:
    """A pipeline on a base of its own, whose blocks a test compiles."""
    torch._dynamo.reset()
    return MixOfShow.from_pretrained(published(sixteen, "<cat>", "<dog>", "<cup>"), base=sixteen.name, device="cpu")


def pixels(drawn) -> np.ndarray:
    return np.stack([np.asarray(image) for image in drawn.images])


def test_a_compiled_model_is_not_compiled_again_for_another_concept(pipe):
    """Every block of the UNet is one graph for each shape, whoever is named."""
    told = {"prompt": "a <cat>", **QUICK}
    before, counter = pixels(pipe(**told)), CompileCounter()
    pipe.compile_repeated_blocks(backend=counter, fullgraph=True)
    assert np.abs(pixels(pipe(**told)).astype(int) - before).max() <= 1
    compiled = counter.frame_count
    assert compiled > 0
    for prompt, seed in (("a <dog>", 1), ("a <cup> in b", 2), ("a cat", 3), ("a (<cat>:1.2) [b:c:0.5]", 4)):
        pipe(prompt, num_inference_steps=2, seed=seed)
    assert counter.frame_count == compiled


def test_neither_for_others_in_regions(pipe):
    """Regions and own changes within them compile parts of blocks, once."""
    counter, left, right = CompileCounter(), "0,0,0.5,1", "0.5,0,1,1"
    pipe.compile_repeated_blocks(backend=counter)
    pipe("a b", regions=[f"a <cat> @ {left}", f"a <dog> @ {right}"], **QUICK)
    compiled = counter.frame_count
    assert compiled > 0
    for regions in ([f"a <cup> @ {left}", f"a <cat> @ {right}"], [f"a <dog> @ {left}", "<cup> @ 0.25,0,1,1"]):
        pipe("a b", regions=regions, **QUICK)
    assert counter.frame_count == compiled


def test_neither_for_several_who_are_where_their_words_attend(pipe):
    """The first step is drawn by the fused model and watched; then each has the cells it has."""
    counter, told = CompileCounter(), {"num_inference_steps": 4, "seed": 1}
    pipe.compile_repeated_blocks(backend=counter)
    pipe("a <cat> and a <dog>", **told)
    compiled = counter.frame_count
    assert compiled > 0
    for prompt in ("a <cup> and a <cat>", "a <dog> beside a <cup> in b"):
        pipe(prompt, **told)
    assert counter.frame_count == compiled


def test_a_compiled_model_draws_the_same_picture(pipe):
    """With a real backend; its sums may have other last bits."""
    told = {"prompt": "a <cat>", **QUICK}
    before, counter = pixels(pipe(**told)), CompileCounterWithBackend("aot_eager")
    pipe.compile_repeated_blocks(backend=counter)
    assert np.abs(pixels(pipe(**told)).astype(int) - before).max() <= 1
    assert counter.frame_count > 0
