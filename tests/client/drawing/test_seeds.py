"""Which seeds the flags of a drawing mean."""

from __future__ import annotations

import pytest

from mos_client.drawing.seeds import seeds_of
from mos_common.errors import RequestError


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [
        ({}, (0,)),
        ({"seed": 7}, (7,)),
        ({"count": 4}, (0, 1, 2, 3)),
        ({"seed": 7, "count": 2}, (7, 8)),
        ({"seeds": "0-7"}, tuple(range(8))),
        ({"seeds": "5, 1,20 - 22"}, (5, 1, 20, 21, 22)),
    ],
)
def test_seeds_are_those_that_were_asked_for(flags, seeds):
    assert seeds_of(**flags) == seeds


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"count": 0}, "--count 0: expected 1 to 64"),
        ({"count": 65}, "--count 65: expected 1 to 64"),
        ({"seeds": "0-3", "count": 2}, "leave out --count and --seed"),
        ({"seeds": "0-3", "seed": 1}, "leave out --count and --seed"),
        ({"seeds": "a"}, "expected seeds and ranges"),
        ({"seeds": ""}, "expected seeds and ranges"),
        ({"seeds": "-1"}, "expected seeds and ranges"),
        ({"seeds": "3-1"}, "expected a range upwards"),
        ({"seeds": "0-999999999999"}, "expected a range upwards"),
        ({"seeds": "1,0-3"}, "a seed is there twice"),
        ({"seeds": "0-39,100-139"}, "80 pictures, at most 64"),
        ({"seeds": "9223372036854775808"}, "expected a whole number from 0"),
        ({"seed": 2**63 - 2, "count": 4}, "expected a whole number from 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags, said):
    with pytest.raises(RequestError, match=said):
        seeds_of(**flags)
