"""How large a concept of a base can be: the gate stores no more of an answer."""

from __future__ import annotations

import dataclasses

import torch

from mos_common.base_model import Base
from mos_common.concept_file import MAX_BYTES, MAX_HEADER_BYTES, MAX_RANK, MAX_WORDS, bytes_at_most, concept_to_bytes
from mos_common.edlora import LowRank
from mos_server.admission import admit


def largest(base: Base, make_concept) -> bytes:
    """Return a concept of every layer, of full rank, in 32 bits, with the most words."""
    concept = make_concept(base, "<cat>", words=MAX_WORDS)
    pairs = {}
    for layer in base.layout.layers:
        rank = min(MAX_RANK, layer.d_in, layer.d_out)
        pairs[layer.name] = LowRank(1e-3 * torch.randn(rank, layer.d_in), 1e-3 * torch.randn(layer.d_out, rank), 1.0)
    return concept_to_bytes(dataclasses.replace(concept, pairs=pairs), torch.float32)


def test_the_largest_concept_of_a_base_is_admitted_and_within_its_bound(base: Base, make_concept):
    data = largest(base, make_concept)
    assert admit(data, base).name == "<cat>"
    assert len(data) <= bytes_at_most(base) <= len(data) + MAX_HEADER_BYTES


def test_a_small_base_has_small_concepts(tiny: Base):
    assert bytes_at_most(tiny) < MAX_BYTES / 2


def test_no_base_has_larger_concepts_than_a_file_may_be(tiny: Base, monkeypatch):
    monkeypatch.setattr("mos_common.concept_file.MAX_BYTES", 1 << 20)
    assert bytes_at_most(tiny) == 1 << 20
