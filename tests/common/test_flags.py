"""Flags that no command can use are refused in one line: seeds, and numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from mos_common.errors import RequestError
from mos_common.flags import MOST_SEED, FiniteType, SeedType


@pytest.mark.parametrize("seed", [0, 7, 2**32, MOST_SEED])
def test_a_seed_is_one_that_torch_takes_as_it_is(seed):
    assert SeedType().convert(str(seed), None, None) == seed
    assert torch.Generator().manual_seed(seed).initial_seed() == seed


@pytest.mark.parametrize("text", ["-1", "-7", str(MOST_SEED + 1), "99999999999999999999", "1.5", "1e3", "x", "", "٣.٥"])
def test_what_is_no_seed_is_refused_with_what_is_one(text):
    with pytest.raises(RequestError, match=f"expected a whole number from 0 to {MOST_SEED}"):
        SeedType().convert(text, None, None)


def test_the_random_seed_of_other_tools_is_explained():
    with pytest.raises(RequestError, match="other tools take it for a random seed"):
        SeedType().convert("-1", None, None)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "many", "", "0.05", "11"])
def test_a_number_that_is_not_finite_or_out_of_range_is_refused(text):
    with pytest.raises(RequestError, match=r"expected a finite number from 0\.1 to 10"):
        FiniteType(0.1, 10).convert(text, None, None)


@pytest.mark.parametrize("text", ["0.1", "10", "1e-300", "-3"])
def test_other_numbers_are_taken(text):
    least = 0.1 if text in ("0.1", "10") else None
    assert math.isclose(FiniteType(least).convert(text, None, None), float(text))
