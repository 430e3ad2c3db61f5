"""Fusion on a base laid out like Stable Diffusion XL."""

from __future__ import annotations

import torch

from mos_common.concept_file import concept_to_bytes, content_digest
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.fused_model import NamedConcept
from mos_server.admission import admit
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings

SETTINGS = GradientSettings(
    ridge=1e-9,
    ridge_kind="trace",
    preserve=0.0,
    rows="all",
    contexts=("V", "photo of a V"),
    ordinary=("a tree",),
    steps=2,
    guidance=1.0,
    batch=2,
    cap=1e30,
)


def test_one_concept_alone_comes_back_as_it_was_wherever_it_was_recorded(xl, make_concept):
    """In all groups of layers nothing of the change is lost that its own prompts can see."""
    named = NamedConcept("alice", make_concept(xl, strength=0.1))
    fused = fuse(xl, [named], SETTINGS)
    (entry,) = fused.manifest.concepts
    assert {group: round(survival.energy_kept, 3) for group, survival in entry.survival.items()} == {
        "text": 1.0,
        "cross": 1.0,
        "spatial": 1.0,
    }
    assert fused.changes.keys() == {layer.name for layer in xl.layout.attention}
    vocabulary = {"<cat>": fused.vocabulary["<alice/cat>"]}
    assert vocabulary["<cat>"].shape == (11, 2, 24 + 32)
    how, pictures = Drawing(steps=2, guidance=1.0), {}
    recorded = int(content_digest(named.concept)[:12], 16) + 1  # the seed of the second context
    for name, changes in (("none", {}), ("own", named.concept.pairs), ("fused", fused.changes)):
        with attached(xl, changes):
            pictures[name] = draw(xl, ["photo of a <cat>"], [recorded], vocabulary=vocabulary, how=how)
    changed = float((pictures["own"] - pictures["none"]).norm())
    assert float((pictures["fused"] - pictures["own"]).norm()) < 0.02 * changed


def test_an_upload_for_xl_is_admitted_and_two_fuse(xl, make_concept):
    concepts = [
        NamedConcept(participant, admit(concept_to_bytes(make_concept(xl, name, seed=seed, strength=0.05)), xl))
        for seed, (participant, name) in enumerate((("alice", "<cat>"), ("bob", "<dog>")))
    ]
    fused = fuse(xl, concepts, SETTINGS)
    assert fused.vocabulary.keys() == {"<alice/cat>", "<bob/dog>"}
    assert all(torch.isfinite(pair.A).all() and torch.isfinite(pair.B).all() for pair in fused.changes.values())
