"""Which layers a concept may change, seen from what the networks really execute."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from mos_common.base_model import load_base
from mos_common.edlora import attached
from mos_common.layers import Group, layout_of
from mos_common.words import encode_prompts


def run_unet(base) -> None:
    size = base.unet.config.sample_size
    text = torch.randn(1, base.text_length, base.token_table.shape[1])
    with torch.no_grad():
        base.unet(torch.randn(1, 4, size, size), torch.tensor([7]), encoder_hidden_states=text)


def test_cross_attention_counts_from_the_model(tiny, sixteen):
    assert len(tiny.layout.cross_attentions) == tiny.layout.word_layers == 7
    assert len(sixteen.layout.cross_attentions) == sixteen.layout.word_layers == 16


def test_the_layout_that_a_base_keeps_is_that_of_a_fresh_walk(base, xl):
    for model in (base, xl):
        assert model.layout == layout_of(model.text_encoders, model.unet)
        assert model.layout is model.layout


def test_a_base_s_modules_are_walked_once(random_base_folder, monkeypatch):
    """However many ask: another walk would fail here."""
    base = load_base(str(random_base_folder()), device="cpu")
    names = [layer.name for layer in base.layout.layers]
    for module in (base.unet, base.text_encoder):
        monkeypatch.setattr(module, "named_modules", lambda *_: pytest.fail("the modules were walked again"))
    assert [*base.layout.by_name] == names
    with attached(base, {}), torch.no_grad():
        assert encode_prompts(base, ["a cat"], {}).shape[1] == base.layout.word_layers


def test_layers_are_found_by_name_and_by_group(base):
    assert all(base.layout.by_name[layer.name] is layer for layer in base.layout.layers)
    assert [layer for group in Group for layer in base.layout.by_group[group]] == list(base.layout.layers)
    assert all(layer.group is group for group in Group for layer in base.layout.by_group[group])


def test_a_layout_cannot_be_changed(tiny):
    with pytest.raises(FrozenInstanceError):
        tiny.layout.layers = ()
    with pytest.raises(TypeError):
        tiny.layout.by_name["unet.mine"] = tiny.layout.layers[0]


def test_another_unet_has_another_layout(tiny, sixteen):
    """The layout belongs to the base that was asked: one with another UNet is asked anew."""
    assert tiny.layout != replace(tiny, unet=sixteen.unet).layout


def test_cross_attentions_are_listed_in_the_order_in_which_they_run(base):
    """Observed with hooks: whichever attention module is given text, in the order of the calls."""
    ran, handles = [], []
    for name, module in base.unet.named_modules():
        if isinstance(module, Attention):

            def note(_module, _args, kwargs, name=name):
                if kwargs.get("encoder_hidden_states") is not None:
                    ran.append(name)

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        run_unet(base)
    finally:
        for handle in handles:
            handle.remove()
    assert [cross.name for cross in base.layout.cross_attentions] == ran
    assert ran != [name for name, module in base.unet.named_modules() if name in ran], (
        "execution is not registration order"
    )


def test_the_layers_are_every_linear_of_every_attention_of_text_encoder_and_unet(base):
    expected = {
        id(linear)
        for _, module in base.unet.named_modules()
        if isinstance(module, Attention)
        for linear in module.modules()
        if isinstance(linear, nn.Linear)
    } | {
        id(linear)
        for name, linear in base.text_encoder.named_modules()
        if isinstance(linear, nn.Linear) and "self_attn" in name
    }
    layers = base.layout.attention
    assert {id(layer.module) for layer in layers} == expected
    assert len(layers) == len(expected) == len({layer.name for layer in layers})


def test_names_are_canonical_and_lead_to_the_module(base):
    for layer in base.layout.attention:
        part, _, path = layer.name.partition(".")
        if part == "unet":
            assert base.unet.get_submodule(path) is layer.module
        else:
            assert part == "text_encoder"
            assert path.startswith("text_model.encoder.layers.")
            own = dict(base.text_encoder.named_modules())
            assert own.get(path, own.get(path.removeprefix("text_model."))) is layer.module


def test_the_order_is_that_of_fusion(base):
    groups = [layer.group for layer in base.layout.attention]
    assert list(dict.fromkeys(groups)) == [Group.TEXT, Group.CROSS, Group.SPATIAL]
    assert groups == sorted(groups, key=list(Group).index)


def test_layers_share_statistics_exactly_when_they_read_the_same_rows(base):
    """Layers of one `reads` get one and the same tensor; layers of different ones never do."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for layer in base.layout.attention:

        def note(_module, args, reads=layer.reads):
            seen.setdefault(reads, []).append(args[0])

        handles.append(layer.module.register_forward_pre_hook(note))
    try:
        run_unet(base)
        with torch.no_grad():
            base.text_encoder(torch.zeros(1, base.text_length, dtype=torch.long))
    finally:
        for handle in handles:
            handle.remove()
    for rows in seen.values():
        assert all(torch.equal(row, rows[0]) for row in rows)
    spatial = [rows[0] for reads, rows in seen.items() if not reads.endswith(".text")]
    for i, one in enumerate(spatial):
        assert not any(one.shape == other.shape and torch.equal(one, other) for other in spatial[:i])


def test_widths_are_the_modules_own(base):
    for layer in base.layout.attention:
        assert layer.module.weight.shape == (layer.d_out, layer.d_in)


def test_a_concept_may_change_any_linear_and_any_pointwise_convolution(base):
    """Each once; the attention's first in each group, and groups in the order of fusion."""
    layers = base.layout.layers
    expected = {
        id(module)
        for model in (base.unet, base.text_encoder)
        for module in model.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    }
    assert {id(layer.module) for layer in layers} == expected
    assert len(layers) == len(expected) == len({layer.name for layer in layers})
    assert [layer.group for layer in layers] == sorted((layer.group for layer in layers), key=list(Group).index)
    assert set(base.layout.attention) <= set(layers)


def test_what_a_pointwise_convolution_reads_is_one_row_a_pixel(tiny):
    layer = next(it for it in tiny.layout.layers if isinstance(it.module, nn.Conv2d))
    picture = torch.randn(2, layer.d_in, 3, 5)
    rows = layer.rows(picture)
    by_rows = rows @ layer.module.weight.flatten(1).T + layer.module.bias
    assert rows.shape == (2, 15, layer.d_in)
    torch.testing.assert_close(by_rows.transpose(1, 2).reshape(2, -1, 3, 5), layer.module(picture))
