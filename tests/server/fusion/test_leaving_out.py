"""Who is left out: a concept that ruins others, never one that others merely differ from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.errors import UndecidedError
from mos_server.fusion.fuse import fuse
from mos_server.fusion.leaving_out import Influence, RuinousConceptError, check_influence
from reference.small_fusion import SETTINGS, assert_bit_equal

JUDGED = replace(SETTINGS, least_share=0.75, contexts=("V",), ordinary=("a",))


def influence(
    without: list[list[float]], energy: list[float] | None = None, loudness: list[float] | None = None
) -> Influence:
    """Influence from rows k₋j; the diagonal is what each keeps with all."""
    table = torch.tensor(without, dtype=torch.float64)
    tokens = ["<a>", "<b>", "<c>", "<d>", "<e>"][: len(table)]
    energies, loud = (torch.tensor(each or [1.0] * len(table), dtype=torch.float64) for each in (energy, loudness))
    kept = table.diagonal().clone()
    return Influence(Group.TEXT, tokens, kept, table.fill_diagonal_(1.0), energies, loud)


def taking(*losses: float, loudness: list[float] | None = None) -> Influence:
    """Everybody keeps 0.45, and would keep the j-th loss more without concept j."""
    rows = [[0.45 if i == j else 0.45 + loss for i in range(len(losses))] for j, loss in enumerate(losses)]
    return influence(rows, loudness=loudness)


def test_equals_share_what_there_is():
    """Three concepts that keep 1/3 each, and 1/2 in pairs: everybody leaves the fair part, 1."""
    equals = influence([[1 / 3, 1 / 2, 1 / 2], [1 / 2, 1 / 3, 1 / 2], [1 / 2, 1 / 2, 1 / 3]])
    torch.testing.assert_close(equals.shares, torch.ones(3, 3, dtype=torch.float64))
    check_influence(equals, 0.75)


def test_a_loud_one_goes_and_the_error_has_the_numbers():
    """By hand: of 0.5 one of three leaves two thirds, and the least is three quarters of it."""
    loud = influence([[-1.0, 0.25, 0.85], [-0.9, 0.2, 0.85], [0.5, 0.6, 0.8]])
    with pytest.raises(RuinousConceptError) as raised:
        check_influence(loud, 0.75)
    assert raised.value.token == "<c>"
    assert "<a> keeps -1.00 of its effect on the text encoder with <c> and 0.50 without" in raised.value.reason
    assert raised.value.reason.endswith("where at least 0.25 is expected, and 1 more")


def test_two_that_ruin_only_each_other_are_a_question():
    opposed = influence([[0.0, 0.6, 0.5], [0.6, 0.0, 0.5], [0.02, 0.02, 0.4]])
    with pytest.raises(
        UndecidedError, match=r"<a> and <b> ruin each other, .*<a> keeps 0\.00 .*<b> keeps 0\.00"
    ) as raised:
        check_influence(opposed, 0.75)
    assert set(raised.value.tokens) == {"<a>", "<b>"}


def test_one_that_is_at_odds_with_most_is_left_out_even_if_they_ruin_it_too():
    """Everybody against <d>, who ruins three of three."""
    odd = influence(
        [[0.1, 0.2, 0.2, 0.5], [0.2, 0.1, 0.2, 0.5], [0.2, 0.2, 0.1, 0.5], [0.6, 0.6, 0.6, 0.0]],
    )
    with pytest.raises(RuinousConceptError) as raised:
        check_influence(odd, 0.75)
    assert raised.value.token == "<d>"


def test_a_concept_cannot_have_another_left_out_by_being_faint():
    """Any ordinary concept drowns one with a hundredth of its energy, through no fault."""
    table = [[0.4, 0.5, 0.3], [0.5, 0.4, -19.0], [0.41, 0.41, -20.0]]
    check_influence(influence(table, [1.0, 1.0, 0.01]), 0.75)
    with pytest.raises(RuinousConceptError):
        check_influence(influence(table), 0.75)


def test_one_that_everybody_wears_down_is_not_ruined_by_the_last_of_them():
    """<a> would keep less than nothing without <d> too, and loses as much to each of the others."""
    worn = [[-0.6, 0.4, 0.4, 0.4], [-0.5, 0.3, 0.4, 0.4], [-0.5, 0.4, 0.3, 0.4], [-0.45, 0.4, 0.4, 0.3]]
    table = influence(worn)
    assert float(table.shares[3, 0]) < 0 and not table.ruins(0.25).any()
    check_influence(table, 0.25)


def test_a_loss_of_next_to_nothing_is_no_ruin():
    """Beside many, a concept keeps little: from 0.03 to 0.02 is a third, and nothing to see."""
    check_influence(influence([[0.02, 0.03, 0.3], [0.03, 0.3, 0.35], [0.03, 0.35, 0.3]]), 0.75)


def test_the_toll_is_what_a_typical_other_loses_in_units_of_one_of_n_equals():
    """By hand: one of five takes a fifth of 0.5, which a typical one keeps without another."""
    torch.testing.assert_close(
        taking(0.05, 0.05, 0.06, 0.04, 0.2).tolls, torch.tensor([0.5, 0.5, 0.6, 0.4, 2.0], dtype=torch.float64)
    )


def test_who_takes_far_more_from_all_than_the_others_goes_though_nobody_is_ruined():
    """Each keeps two thirds of what it had, far above the least share."""
    with pytest.raises(RuinousConceptError) as raised:
        check_influence(taking(0.05, 0.05, 0.06, 0.04, 0.2), 0.25)
    assert raised.value.token == "<e>"
    assert raised.value.reason == (
        "it takes 2.00 times what one of 5 equals takes from a typical concept, where at most 1.50 is expected: <a> "
        "keeps 0.45 of its effect on the text encoder with <e> and 0.65 without"
    )


@pytest.mark.parametrize(
    ("losses", "loudness"),
    [
        ((0.05, 0.05, 0.06, 0.04, 0.14), [1.0] * 5),  # not yet three times as much as the others
        ((0.02, 0.02, 0.02, 0.02, 0.09), [1.0] * 5),  # more than that, and less than one of equals
        ((0.05, 0.05, 0.06, 0.04, 0.14), [1.0, 1.0, 1.0, 1.0, 2.0]),
        ((0.05, 0.05, 0.06, 0.04, 0.05), [1.0, 1.0, 1.0, 1.0, 9.0]),  # loud, and no burden
    ],
)
def test_who_takes_little_or_not_much_more_than_the_others_stays(losses, loudness):
    check_influence(taking(*losses, loudness=loudness), 0.25)


def test_of_one_that_is_loud_half_as_much_is_borne():
    with pytest.raises(RuinousConceptError) as raised:
        check_influence(taking(0.05, 0.05, 0.06, 0.04, 0.09, loudness=[1.0, 1.0, 1.0, 1.0, 2.4]), 0.25)
    assert raised.value.token == "<e>" and "where at most 0.75 is expected" in raised.value.reason


def test_nobody_alone_can_make_another_look_costly():
    """<a> says that <e> takes everything from it; the other three know better."""
    contradicted = taking(0.05, 0.05, 0.05, 0.05, 0.05)
    contradicted.without[4, 0] = 3.0
    assert contradicted.tolls[4] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def small(random_base):
    """A base of eight channels, on which a fusion takes half a second."""
    return random_base(width=8)


@pytest.fixture(scope="module")
def honest(small, make_concept) -> list[NamedConcept]:
    """Three equals that change every layer by a few percent."""
    return [NamedConcept(f"p{seed}", make_concept(small, seed=seed, rank=4, strength=0.05)) for seed in range(3)]


def scaled(concept: Concept, factor: float) -> Concept:
    """The concept with every change times a factor."""
    pairs = {name: LowRank(pair.A, pair.B * factor, pair.alpha) for name, pair in concept.pairs.items()}
    return replace(concept, pairs=pairs)


@pytest.fixture(scope="module")
def alone(small, honest, tmp_path_factory):
    """The model of the honest ones, and the folder with their moments."""
    kept = tmp_path_factory.mktemp("moments")
    return fuse(small, honest, JUDGED, moments_dir=kept), kept


@pytest.mark.parametrize("factor", [5.0, 15.0])
def test_the_others_are_fused_as_if_a_loud_one_had_never_come(small, honest, alone, make_concept, factor):
    loud = NamedConcept("mallory", scaled(make_concept(small, seed=9, rank=4, strength=0.05), factor))
    lines: list[str] = []
    fused = fuse(small, [*honest, loud], JUDGED, moments_dir=alone[1], progress=lines.append)
    assert [each.token for each in fused.manifest.excluded] == ["<mallory/cat>"]
    assert "it ruins other concepts" in fused.manifest.excluded[0].reason
    assert any(line.startswith("<mallory/cat> is left out: it ruins") for line in lines)
    assert_bit_equal(fused, alone[0])


def test_those_who_are_loud_together_go_one_by_one(small, honest, alone, make_concept):
    """Without any one of them the others are ruined still; each loss counts all the same."""
    loud = [
        NamedConcept(f"m{seed}", scaled(make_concept(small, seed=seed, rank=4, strength=0.05), 6.0))
        for seed in (11, 12, 13)
    ]
    fused = fuse(small, [*honest, *loud], JUDGED, moments_dir=alone[1])
    assert sorted(each.token for each in fused.manifest.excluded) == ["<m11/cat>", "<m12/cat>", "<m13/cat>"]
    assert_bit_equal(fused, alone[0])


def test_equals_all_stay_and_nobody_is_left_out_on_request(small, honest, alone, make_concept):
    assert alone[0].manifest.excluded == []
    loud = NamedConcept("mallory", scaled(make_concept(small, seed=9, rank=4, strength=0.05), 15.0))
    fused = fuse(small, [*honest, loud], replace(JUDGED, least_share=None), moments_dir=alone[1])
    assert fused.manifest.excluded == [] and len(fused.manifest.concepts) == 4


def test_two_opposite_changes_of_the_same_words_are_a_question(small, honest, alone):
    against = NamedConcept("mallory", scaled(honest[0].concept, -1.0))
    with pytest.raises(UndecidedError) as raised:
        fuse(small, [*honest, against], JUDGED, moments_dir=alone[1])
    assert set(raised.value.tokens) == {"<p0/cat>", "<mallory/cat>"}
