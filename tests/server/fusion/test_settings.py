"""Settings of fusion as a federation, a round and a command keep them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mos_common.errors import RequestError
from mos_common.settings import settings_from_json
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.methods.method import settings_in_manifest
from mos_server.fusion.methods.sum import SumSettings
from mos_server.fusion.presets import PRESETS
from mos_server.fusion.settings import FusionSettings
from mos_server.state.records import describe_fusion


def test_what_a_command_line_says_is_put_over_what_was_kept():
    kept = FusionSettings(GradientSettings(preserve=3.0, ridge=0.1), {"<alice/cat>": 2.0}, "auto")
    changed = kept.changed(texts=["ridge=0.2", "contexts=V|photo of a V"], weights=["<bob/dog>=0.5"])
    assert changed.of_method == GradientSettings(preserve=3.0, ridge=0.2, contexts=("V", "photo of a V"))
    assert changed.weights == {"<alice/cat>": 2.0, "<bob/dog>": 0.5}
    assert changed.workers == "auto"


def test_what_is_set_back_is_no_longer_kept():
    kept = FusionSettings(GradientSettings(preserve=3.0, guidance=2.0), {"<alice/cat>": 2.0}, "2")
    back = kept.changed(texts=["preserve=none", "guidance=1"], weights=["<alice/cat>=1"], workers="here")
    assert back == FusionSettings()
    assert back.to_json() == {}


def test_another_method_starts_from_its_own_defaults():
    kept = FusionSettings(GradientSettings(preserve=3.0), {"<alice/cat>": 2.0})
    changed = kept.changed(method="sum", texts=["sum_weight=0.5"])
    assert changed == FusionSettings(SumSettings(sum_weight=0.5), {"<alice/cat>": 2.0})


@pytest.mark.parametrize(
    "settings",
    [
        FusionSettings(),
        FusionSettings(GradientSettings(preserve=3.0, guidance=0.0, contexts=("V",), unconditional=True)),
        FusionSettings(SumSettings(sum_weight=0.5), {"<alice/cat>": 2.0}, "ray://host:10001"),
    ],
    ids=["defaults", "gradient", "sum"],
)
def test_they_come_back_from_json(settings):
    assert FusionSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_json_holds_only_what_differs_from_the_defaults():
    settings = FusionSettings(GradientSettings(preserve=3.0, contexts=("V",)))
    assert settings.to_json() == {"settings": {"contexts": ["V"], "preserve": 3.0}}


def test_weights_of_concepts_that_are_not_there_can_be_left_out():
    settings = FusionSettings(weights={"<alice/cat>": 2.0, "<bob/dog>": 3.0})
    assert settings.for_tokens({"<bob/dog>"}).weights == {"<bob/dog>": 3.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": ["preserv=3"]}, "method gradient: unknown setting 'preserv': did you mean preserve"),
        ({"method": "ties", "texts": ["densty=3"]}, "method ties: unknown setting 'densty': did you mean density"),
        ({"method": "average", "texts": ["ridge=3"]}, "method average: unknown setting 'ridge'.*nothing to set"),
        ({"texts": ["ridge=much"]}, "method gradient: --set ridge=much.*number"),
        ({"texts": ["ridge=0"]}, "method gradient: ridge 0.0"),
        ({"texts": ["ridge=1", "ridge=2"]}, "given twice"),
        ({"texts": ["ridge"]}, "expected NAME=VALUE"),
        ({"method": "magic"}, "unknown method 'magic'; known: gradient"),
        ({"weights": ["heavy"]}, "--weight heavy: expected"),
        ({"weights": ["<alice/cat>=0"]}, "the weight of <alice/cat> is 0.0"),
        ({"workers": "many"}, "--workers many: expected auto"),
    ],
    ids=str,
)
def test_what_cannot_be_set_is_an_error_that_says_what_can(change, words):
    with pytest.raises(RequestError, match=words):
        FusionSettings().changed(**change)


@pytest.mark.parametrize(
    "values",
    [{"colour": "red"}, {"settings": {"colour": "red"}}, {"method": "magic"}, {"settings": {"ridge": "x"}}],
    ids=str,
)
def test_json_of_another_version_is_an_error(values):
    with pytest.raises(RequestError, match=r"colour|magic|ridge"):
        FusionSettings.from_json(values)


def test_a_preset_gives_what_is_not_set():
    faithful = FusionSettings().changed(texts=["preset=faithful", "ridge=0.1"])
    assert faithful.to_json() == {"settings": {"preset": "faithful", "ridge": 0.1}}
    assert faithful.of_method.terms == replace(PRESETS["faithful"], ridge=0.1)
    back = faithful.changed(texts=["preset=identity", "ridge=none"])
    assert back == FusionSettings() and back.of_method.terms == PRESETS["identity"]


def test_a_manifest_says_the_preset_and_its_numbers():
    written = settings_in_manifest(GradientSettings(preserve=3.0))
    assert written["preset"] == "identity" and written["preserve"] == 3.0
    assert written["ridge"] == PRESETS["identity"].ridge
    assert settings_from_json(GradientSettings, written).terms == GradientSettings(preserve=3.0).terms


def test_an_unknown_preset_is_refused():
    with pytest.raises(RequestError, match="'identity' or 'faithful'"):
        FusionSettings().changed(texts=["preset=sharp"])


@pytest.mark.parametrize(
    ("fusion", "described"),
    [
        ({}, "gradient, preset identity"),
        ({"settings": {"preset": "faithful", "steps": 3}}, "gradient, preset faithful, steps=3"),
        ({"method": "average"}, "average, all defaults"),
    ],
)
def test_status_says_which_preset(fusion, described):
    assert describe_fusion(fusion) == described
