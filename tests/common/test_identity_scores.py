"""The four numbers of identity: one form on the wire, in the journal and in the manifest."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict

import pytest
from flwr.app import MetricRecord, RecordDict
from pydantic import ValidationError

from mos_common import messages
from mos_common.errors import ConceptError
from mos_common.fused_model import FusedConcept
from mos_common.identity_scores import Identity

SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
AS_JSON = '{"class_word": 0.1, "single": 0.6, "fused": 0.5, "ceiling": 0.8}'


def in_manifest(identity: str) -> str:
    """One concept of a manifest, as version 0.1.0 wrote it."""
    concept = {"author": "", "class_word": "cat", "digest": "ab" * 32, "flagged": False, "licence": "", "name": "<cat>"}
    concept |= {"participant": "alice", "survival": {}, "token": "<alice/cat>", "weight": 1.0}
    return json.dumps(concept | {"identity": json.loads(identity)})


def test_the_numbers_are_read_from_what_a_journal_holds_and_written_back_alike():
    assert Identity(**json.loads(AS_JSON)) == SCORES
    assert json.dumps(asdict(SCORES)) == AS_JSON


def test_the_numbers_are_read_from_a_manifest_and_written_back_alike():
    text = in_manifest(AS_JSON)
    concept = FusedConcept.model_validate_json(text)
    assert concept.identity == SCORES
    assert json.loads(concept.model_dump_json()) == json.loads(text)


@pytest.mark.parametrize(
    "identity",
    [
        '{"class_word": 0.1, "single": 0.6, "fused": 0.5, "ceiling": 0.8, "more": 0.1}',
        '{"class_word": 0.1, "single": 0.6, "fused": null, "ceiling": 0.8}',
        '{"class_word": 0.1, "single": 0.6, "fused": 0.5}',
        '{"class_word": 0.1, "single": 0.6, "fused": 7.0, "ceiling": 0.8}',
    ],
)
def test_a_manifest_with_other_numbers_is_refused(identity: str):
    with pytest.raises((ValidationError, ConceptError)):
        FusedConcept.model_validate_json(in_manifest(identity))


def test_the_numbers_travel_as_one_record():
    content = messages.identity_content(SCORES)
    assert content == RecordDict({"identity": MetricRecord(json.loads(AS_JSON))})
    assert messages.read_identity(content) == SCORES


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.01, -1.01])
def test_a_number_that_is_no_cosine_is_named(value: float):
    with pytest.raises(ConceptError, match="identity fused is"):
        Identity(class_word=0.1, single=0.6, fused=value, ceiling=0.8)


def test_the_numbers_do_not_change_once_measured():
    with pytest.raises(FrozenInstanceError):
        SCORES.fused = 0.9


def test_the_loss_is_what_fusion_took():
    assert SCORES.loss == pytest.approx(0.1)


def test_people_read_the_numbers_in_one_line():
    assert str(SCORES) == "class word 0.100, single 0.600, fused 0.500, ceiling 0.800"
