"""Settings: declared once, set by NAME=VALUE, kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from mos_common.errors import RequestError
from mos_common.settings import (
    changed,
    describe_settings,
    differences,
    parse_settings,
    setting,
    settings_from_json,
    settings_to_json,
)


@dataclass(frozen=True)
class Oven:
    """How bread is baked."""

    heat: float = setting(220.0, "how hot the oven is", unit="degrees Celsius")
    loaves: int = setting(2, "loaves that are baked together")
    steam: bool = setting(True, "pour water on the oven's floor")
    crust: Literal["thin", "thick"] = setting("thin", "the crust")
    flours: tuple[str, ...] = setting(("rye", "wheat"), "flours")
    timer: float | None = setting(None, "when to stop; none: look at the crust", unit="minutes")
    serial: str = "not a setting"

    def __post_init__(self) -> None:
        if not 0 < self.heat <= 300:
            raise RequestError(f"heat {self.heat}: expected above 0 and at most 300")


TEXTS = ["heat=180.5", "loaves=3", "steam=no", "crust=thick", "flours=spelt, fine | oats", "timer=45"]
VALUES = {"heat": 180.5, "loaves": 3, "steam": False, "crust": "thick", "flours": ("spelt, fine", "oats"), "timer": 45}


def test_each_text_becomes_a_value_of_the_declared_type():
    assert parse_settings(Oven, TEXTS) == VALUES


def test_a_list_may_be_json_and_none_is_a_word():
    assert parse_settings(Oven, ['flours=["a|b", "c"]', "timer=none"]) == {"flours": ("a|b", "c"), "timer": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heat", r"expected NAME=VALUE, such as heat=220"),
        ("=3", "expected NAME=VALUE"),
        ("haet=200", r"unknown setting 'haet': did you mean heat\?"),
        ("colour=red", "known: heat, loaves, steam"),
        ("serial=7", "unknown setting 'serial'"),
        ("loaves=many", r"--set loaves=many: .*loaves that are baked together"),
        ("loaves=2.5", "--set loaves=2.5"),
        ("heat=hot", r"\(how hot the oven is \(degrees Celsius\)\)"),
        ("crust=burnt", "'thin' or 'thick'"),
        ("flours=[1", "JSON list"),
    ],
)
def test_a_text_that_sets_nothing_says_why(text, message):
    with pytest.raises(RequestError, match=message):
        parse_settings(Oven, [text])


def test_a_setting_is_set_once():
    with pytest.raises(RequestError, match="loaves is given twice"):
        parse_settings(Oven, ["loaves=1", "loaves=2"])


def test_a_range_is_checked_where_the_value_is_made():
    with pytest.raises(RequestError, match="at most 300"):
        changed(Oven(), parse_settings(Oven, ["heat=999"]))


def test_settings_come_back_from_json_as_they_were():
    oven = changed(Oven(), VALUES)
    values = settings_to_json(oven)
    del values["serial"]
    assert settings_from_json(Oven, values) == oven


def test_what_is_missing_from_json_has_its_default():
    assert settings_from_json(Oven, {"loaves": 5}) == Oven(loaves=5)


@pytest.mark.parametrize(
    ("values", "message"), [({"fan": 1}, "unknown setting 'fan'"), ({"loaves": "many"}, "loaves is 'many'")]
)
def test_json_of_another_release_is_refused_by_name(values, message):
    with pytest.raises(RequestError, match=message):
        settings_from_json(Oven, values)


def test_only_what_differs_from_the_defaults_is_a_difference():
    assert differences(Oven()) == {}
    assert differences(Oven(heat=200.0, flours=("rye",))) == {"heat": 200.0, "flours": ["rye"]}


def test_every_setting_is_described_with_default_meaning_and_unit():
    lines = list(describe_settings(Oven))
    assert lines[0] == "heat=220.0: how hot the oven is (degrees Celsius)"
    assert lines[2:5] == [
        "steam=true: pour water on the oven's floor",
        "crust=thin: the crust",
        "flours=rye|wheat: flours",
    ]
    assert lines[5].startswith("timer=none: ")
    assert len(lines) == 6


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_a_number_that_is_not_finite_is_refused(text):
    with pytest.raises(RequestError, match=r"heat=.*finite"):
        parse_settings(Oven, [f"heat={text}"])
    with pytest.raises(RequestError, match="finite"):
        settings_from_json(Oven, {"heat": float(text)})
