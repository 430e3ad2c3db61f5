"""JSON of strangers: the first thing wrong ends the reading, in memory that the size bounds."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from pydantic import Field

from mos_common.fused_model import Manifest
from mos_common.json_models import JsonModelError, StrictModel, from_json


class Leaf(StrictModel):
    number: int


class Tree(StrictModel):
    leaves: list[Leaf] = Field(default_factory=list)
    named: dict[str, Leaf] = Field(default_factory=dict)
    counts: dict[str, float] = Field(default_factory=dict)


def test_good_json_is_read():
    assert from_json(Tree, b'{"leaves": [{"number": 3}], "counts": {"a": 1}}') == Tree(
        leaves=[Leaf(number=3)], counts={"a": 1.0}
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "valid dictionary"),
        ('{"odd": 1}', "'odd': unknown"),
        ('{"leaves": [{"number": "x"}]}', "'number': Input should be a valid integer"),
        ('{"leaves": [{"more": 1}]}', "'more': unknown"),
        ('{"named": {"a": {}}}', "'number': Field required"),
        ('{"counts": {"a": "x"}}', "'counts.a': Input should be a valid number"),
        (json.dumps({"counts": {str(n): n for n in range(20_001)}}), "20,001 entries"),
    ],
)
def test_the_first_thing_wrong_is_said(text, says):
    with pytest.raises(JsonModelError, match=says):
        from_json(Tree, text)


WRONG = {
    "unknown keys": {str(n): n for n in range(100_000)},
    "empty concepts": {"concepts": [{}] * 100_000},
    "fewer empty concepts": {"concepts": [{}] * 20_000},
    "wrong files": {"files": {str(n): {} for n in range(20_000)}},
    "wrong numbers": {"influence": {"unet": [["x"] * 100_000]}},
    "wrong versions": {"versions": {str(n): n for n in range(20_000)}},
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_json_costs_what_its_size_says(wrong):
    """What Python holds at the most; the errors are pydantic's own, so the fuzzing sees theirs."""
    text = json.dumps(WRONG[wrong])
    tracemalloc.start()
    with pytest.raises(JsonModelError):
        from_json(Manifest, text)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 60 * len(text) + (30 << 20)


def test_a_model_built_in_python_says_everything():
    with pytest.raises(ValueError, match="2 validation errors"):
        Tree(leaves=[{"number": "x"}], counts={"a": "x"})
