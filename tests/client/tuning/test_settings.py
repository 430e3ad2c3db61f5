"""The settings of tuning: the base's preset, `--set NAME=VALUE`, ranges."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from mos_client.tuning.settings import Method, TuningSettings, tuning_texts
from mos_common.errors import RequestError
from mos_common.settings import describe_settings
from reference.small_tuning import CONFIG


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 100_001}, {"rank": 0}, {"rank": 257}, {"batch": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RequestError):
        replace(CONFIG, **wrong)


def test_settings_come_from_the_preset_of_the_base(tiny):
    config = TuningSettings.of(tiny.preset, seed=3)
    assert (config.steps, config.batch, config.seed) == (tiny.preset.steps, tiny.preset.batch, 3)
    assert TuningSettings.of(tiny.preset, steps=7).steps == 7
    with pytest.raises(RequestError, match="0 steps"):
        TuningSettings.of(tiny.preset, steps=0)


def test_any_setting_can_be_given_as_text_and_wrong_ones_are_refused_by_name(tiny):
    changes = tuning_texts(["attention_weight=0.01", "mirror=true", "rank = 8", "method=p-plus"])
    config = TuningSettings.of(tiny.preset, changes=changes)
    assert (config.attention_weight, config.mirror, config.rank, config.method) == (0.01, True, 8, Method.P_PLUS)
    for wrong, said in (
        ("rank", "expected NAME=VALUE"),
        ("colour=3", "unknown setting 'colour'"),
        ("rank=x", "--set rank=x"),
        ("rang=3", "did you mean rank"),
    ):
        with pytest.raises(RequestError, match=said):
            tuning_texts([wrong])
    for wrong in ("averaging=1", "template_share=2", "crops=0", "noise_offset=-1", "background_weight=-0.1"):
        with pytest.raises(RequestError):
            TuningSettings.of(tiny.preset, changes=tuning_texts([wrong]))


def test_every_setting_is_described_and_can_be_given_by_name(tiny):
    """Each line names a setting of `--set`; its default, given as text, changes nothing."""
    usual = TuningSettings.of(tiny.preset)
    described = [line.split(":")[0].partition("=") for line in describe_settings(TuningSettings)]
    assert [name for name, _, _ in described] == [field.name for field in fields(TuningSettings)]
    for name, _, default in described:
        text = f"{name}={default or getattr(usual, name)}"
        assert TuningSettings.of(tiny.preset, changes=tuning_texts([text])) == usual


def test_a_value_keeps_the_text_it_was_given_as():
    assert tuning_texts([" rank = 08", "mirror=TRUE"]) == {"rank": "08", "mirror": "TRUE"}
    with pytest.raises(RequestError, match="rank is given twice"):
        tuning_texts(["rank=8", "rank=4"])
