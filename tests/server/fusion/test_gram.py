"""XᵀX to the last bit that float32 rows have, with products in float32 or TF32 alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mos_server.fusion.gram import ROWS, STEP, _slice, gram, sliced_gram, wide_gram

# A slice rounds 2^-25 below a column's largest element: a Gram of m such rows can be off by at most
# this share of Σ largest².
SLICES = 2.0**-23


def rows(count: int, width: int, *, spread: float = 4.0, offset: float = 3.0, seed: int = 0) -> torch.Tensor:
    """As a network's activations are: columns of very different size, and far from mean 0."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -spread, width)
    return torch.randn(count, width, generator=generator) * scale + offset * torch.randn(width, generator=generator)


def exact(X: torch.Tensor) -> torch.Tensor:
    return X.double().T @ X.double()


@settings(max_examples=25)
@given(
    count=st.sampled_from([1, 2, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 40 * ROWS + 7]),
    width=st.integers(1, 9),
    scale=st.floats(1e-12, 1e12),
    seed=st.integers(0, 1000),
)
def test_slices_add_up_to_the_gram(count, width, scale, seed):
    X = rows(count, width, seed=seed) * scale
    bound = SLICES * count * X.abs().amax(dim=0).double()
    error = (sliced_gram(X) - exact(X)).abs()
    assert bool((error <= bound[:, None] * X.abs().amax(dim=0).double()).all())


@pytest.mark.parametrize(("count", "width"), [(10, 300), (300, 300), (5000, 257), (700, 8), (4097, 65)])
def test_blocks_are_the_whole_gram(count, width):
    """Upper blocks and their mirror, rows a few thousand at a time."""
    X = rows(count, width)
    torch.testing.assert_close(wide_gram(X), exact(X), rtol=1e-12, atol=1e-12 * float(exact(X).abs().max()))
    assert torch.equal(wide_gram(X), wide_gram(X).T) or count < width


def test_whole_numbers_are_exact():
    """If three slices hold the rows without rounding, the result is that of integers."""
    X = torch.randint(-(2**11), 2**11, (700, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(sliced_gram(X.float()), (X.T @ X).double())


def test_small_directions_survive():
    """With an eigenvalue 12 orders below the largest, float32 turns it negative, slices do not."""
    X = rows(2000, 48)
    smallest = [float(torch.linalg.eigvalsh(G)[0]) for G in (exact(X), sliced_gram(X), (X.T @ X).double())]
    assert smallest[0] > 0
    assert smallest[1] == pytest.approx(smallest[0], rel=1e-2)
    assert smallest[2] < 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("product", [gram, sliced_gram])
def test_what_is_not_finite_is_not_hidden(value, product):
    X = rows(5, 3)
    X[2, 1] = value
    assert not torch.isfinite(product(X)).all()


def test_a_column_of_zeros_stays_zero():
    X = rows(9, 4)
    X[:, 2] = 0
    assert sliced_gram(X)[2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_multiplied_in_full(dtype):
    X = rows(600, 6).to(dtype)
    for product in (gram, sliced_gram):
        torch.testing.assert_close(product(X), exact(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_callers_matmul_precision_is_neither_used_nor_changed(allowed):
    X, before = rows(300, 4), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = allowed
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(gram(X), exact(X))
            torch.testing.assert_close(sliced_gram(X), exact(X), rtol=1e-6, atol=1e-6)
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_slices_are_whole_numbers_that_tf32_holds():
    """TF32 holds whole numbers up to 2048; slices stay within 256, 256 products within 2^24."""
    values, slices = rows(500, 7, offset=0.0) / 5, []
    for _ in range(3):
        whole, values = _slice(values)
        slices.append(whole)
    for whole in slices:
        assert torch.equal(whole, whole.round())
        assert float(whole.abs().max()) <= STEP
    assert ROWS * STEP**2 <= 2**24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits():
    X = rows(5000, 64)
    assert torch.equal(sliced_gram(X.cuda()).cpu(), sliced_gram(X))
