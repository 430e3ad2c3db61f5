"""Concepts that join and leave give, to the bit, what a fusion from scratch gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.fusion import statistics
from mos_server.fusion.fuse import fuse
from reference.small_fusion import SETTINGS, assert_bit_equal


def test_a_concept_that_leaves_has_never_been_there(tiny, three, tmp_path, recordings):
    """Fusing who remains from kept moments is, to the bit, fusing them from scratch.

    None of them is sampled again.
    """
    fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    remaining = fuse(tiny, [three[0], three[2]], SETTINGS, moments_dir=tmp_path)
    assert set(recordings) == {Group.CROSS}
    from_scratch = fuse(tiny, [three[0], three[2]], SETTINGS)
    assert_bit_equal(remaining, from_scratch)
    assert remaining.manifest == from_scratch.manifest


def test_a_concept_that_joins_is_the_only_one_sampled(tiny, three, tmp_path, recordings):
    """Keys and values read the fused text encoder, which a join changes.

    They are recorded again, in one cheap text pass each.
    """
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    joined = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    assert recordings == {Group.TEXT: 1, Group.SPATIAL: 1, Group.CROSS: 3}
    assert_bit_equal(joined, fuse(tiny, three, SETTINGS))


def test_with_own_text_inputs_a_join_records_the_new_concept_only(tiny, three, tmp_path, recordings):
    settings = replace(SETTINGS, text_inputs="own")
    fuse(tiny, three[:2], settings, moments_dir=tmp_path)
    recordings.clear()
    fuse(tiny, three, settings, moments_dir=tmp_path)
    assert recordings == dict.fromkeys(Group, 1)


def test_the_order_of_the_concepts_does_not_matter_to_the_bit(tiny, three):
    one, other = fuse(tiny, three, SETTINGS), fuse(tiny, three[::-1], SETTINGS)
    assert_bit_equal(one, other)
    assert one.manifest == other.manifest


def test_fusing_again_records_nothing_and_changes_nothing(tiny, three, tmp_path, recordings):
    first = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    assert_bit_equal(fuse(tiny, three, SETTINGS, moments_dir=tmp_path), first)
    assert not recordings


def test_damaged_moments_are_recorded_again(tiny, three, tmp_path):
    first = fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    for kept in tmp_path.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert_bit_equal(fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path), first)


def test_kept_moments_carry_the_digest_of_their_concept(tiny, three, tmp_path):
    """So whoever withdraws can have them erased."""
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    owners = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert owners == {**{content_digest(named.concept): 3 for named in three[:2]}, "ordinary": 3}


def test_a_licence_or_a_new_name_needs_no_new_recording(tiny, three, tmp_path, recordings):
    fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    edited = replace(three[0].concept, licence="CC0", name="<my-cat>")
    fuse(tiny, [NamedConcept("alice", edited), *three[1:]], SETTINGS, moments_dir=tmp_path)
    assert not recordings


@pytest.mark.parametrize("what", ["alpha", "class word"])
def test_what_changes_the_recording_is_recorded_anew(tiny, make_concept, tmp_path, what):
    """The same tensors with another alpha are not the same concept.

    Nor are they with another class word, for a concept without words of its own.
    """
    one = make_concept(tiny, "<cat>", words=0)
    other = replace(one, class_word="house")
    if what == "alpha":
        other = replace(one, pairs={name: LowRank(p.A, p.B, 3 * p.alpha) for name, p in one.pairs.items()})
    fuse(tiny, [NamedConcept("", one)], SETTINGS, moments_dir=tmp_path)
    kept = fuse(tiny, [NamedConcept("", other)], SETTINGS, moments_dir=tmp_path)
    assert_bit_equal(kept, fuse(tiny, [NamedConcept("", other)], SETTINGS))


def test_an_interrupted_fusion_goes_on(tiny, three, tmp_path, monkeypatch, recordings):
    """Stopped while the UNet was recorded.

    What was recorded before is not recorded again, and the model is the same.
    """
    counting = statistics.record_group

    def interrupted(group, *arguments):
        if group is Group.SPATIAL and recordings[group] == 2:
            raise KeyboardInterrupt
        return counting(group, *arguments)

    monkeypatch.setattr(statistics, "record_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    monkeypatch.setattr(statistics, "record_group", counting)
    before = recordings.copy()
    resumed = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    assert recordings - before == {Group.SPATIAL: 2}
    assert_bit_equal(resumed, fuse(tiny, three, SETTINGS))
