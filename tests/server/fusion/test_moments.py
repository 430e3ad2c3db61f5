"""Second moments equal those of stored activations; nothing is left on the model or the disk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mos_common.errors import FusionError
from mos_common.layers import Group, Layer
from mos_server.fusion.moments import Moments, read_moments, recording, write_moments


class Attention(nn.Module):
    """q, k and v read one input, `out` another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6, bias=False) for _ in range(4))

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.q(rows) * self.k(rows) + self.v(rows))


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention()


def layers_of(attention: Attention) -> list[Layer]:
    inputs = [Layer(part, getattr(attention, part), Group.TEXT, "input") for part in ("q", "k", "v")]
    return [*inputs, Layer("out", attention.out, Group.TEXT, "out.input")]


def stored_inputs(module: nn.Module, into: list[Tensor]) -> None:
    """The other road: keep every activation."""
    module.register_forward_hook(lambda _module, inputs, _output: into.append(inputs[0].detach().clone()))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def test_moments_are_those_of_the_stored_activations(attention):
    """XᵀX/m over all batches, for every distinct input."""
    stored: dict[str, list[Tensor]] = {"input": [], "out.input": []}
    stored_inputs(attention.k, stored["input"])
    stored_inputs(attention.out, stored["out.input"])
    moments = Moments()
    with torch.no_grad(), recording(layers_of(attention), moments):
        for size in (1, 3, 2):
            attention(torch.randn(size, 5, 6))
    for reads, batches in stored.items():
        X = torch.cat([batch.flatten(0, 1) for batch in batches]).double()
        assert moments.rows[reads] == len(X) == 30
        torch.testing.assert_close(moments.mean(reads), X.T @ X / len(X), rtol=1e-5, atol=1e-6)


def test_an_input_that_layers_share_is_recorded_once(attention):
    moments = Moments()
    with recording(layers_of(attention), moments):
        assert [hooks(part) for part in (attention.q, attention.k, attention.v, attention.out)] == [1, 0, 0, 1]
        attention(torch.randn(2, 5, 6))
    assert moments.rows == {"input": 10, "out.input": 10}


def test_a_mask_chooses_positions_and_a_slice_chooses_prompts(attention):
    rows = torch.randn(2, 3, 6)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    choices = ((lambda batch: batch[mask], rows[mask]), (lambda batch: batch[1:].flatten(0, 1), rows[1]))
    for choice, kept in choices:
        moments = Moments()
        with torch.no_grad(), recording(layers_of(attention), moments, choice):
            attention(rows)
        torch.testing.assert_close(moments.mean("input").float(), kept.T @ kept / len(kept))
        assert moments.rows["input"] == len(kept)


def test_a_mask_that_chooses_nothing_records_nothing(attention):
    moments = Moments()
    with recording(layers_of(attention), moments, lambda batch: batch[torch.zeros(2, 3, dtype=torch.bool)]):
        attention(torch.randn(2, 3, 6))
    assert moments.sums == {}


def test_the_hooks_are_gone_after_an_error(attention):
    with pytest.raises(ZeroDivisionError), recording(layers_of(attention), Moments()):
        raise ZeroDivisionError
    assert hooks(attention) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_named(attention, value):
    rows = torch.randn(1, 3, 6)
    rows[0, 1, 2] = value
    moments = Moments()
    with recording(layers_of(attention), moments):
        attention(rows)
    with pytest.raises(FusionError, match=r"activations of input are not finite"):
        moments.finished()


def test_half_precision_is_summed_in_full_precision():
    """The sum over a thousand float16 batches is exact, though far beyond the range of float16."""
    moments, rows = Moments(), torch.full((64, 2), 8.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(1000):
            moments.add("x", rows)
    assert moments.sums["x"].dtype == torch.float64
    assert moments.sums["x"].tolist() == [[4_096_000.0] * 2] * 2
    assert moments.mean("x").tolist() == [[64.0] * 2] * 2


def recorded(seed: int = 0) -> Moments:
    moments, generator = Moments(), torch.Generator().manual_seed(seed)
    for reads, width in (("unet.a.input", 7), ("text_encoder.b.input", 1), ("c#odd", 4)):
        moments.add(reads, torch.randn(30, width, generator=generator))
    return moments.finished()


def test_moments_come_back_from_disk_bit_for_bit(tmp_path):
    """What is kept is the upper half; the lower half is its mirror."""
    moments = recorded()
    write_moments(moments, tmp_path / "kept.safetensors")
    back = read_moments(tmp_path / "kept.safetensors")
    assert back is not None
    assert back.rows == moments.rows
    assert back.sums.keys() == moments.sums.keys()
    for reads, total in moments.sums.items():
        assert torch.equal(back.sums[reads], total)
        assert torch.equal(back.sums[reads], back.sums[reads].T)
    write_moments(back, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "kept.safetensors").read_bytes()


def test_moments_take_half_a_square_on_disk(tmp_path):
    moments = Moments()
    moments.add("x", torch.randn(8, 256))
    write_moments(moments.finished(), tmp_path / "kept.safetensors")
    assert (tmp_path / "kept.safetensors").stat().st_size < 0.55 * 256 * 256 * 8


def test_missing_moments_are_none(tmp_path):
    assert read_moments(tmp_path / "kept.safetensors") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],  # one bit of one number
    ],
)
def test_damaged_moments_are_none(tmp_path, damage):
    path = tmp_path / "kept.safetensors"
    write_moments(recorded(), path)
    path.write_bytes(damage(path.read_bytes()))
    assert read_moments(path) is None
