"""The list of methods: every file is in it, and every method is a method in the same way."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from mos_common.errors import RequestError
from mos_common.settings import settings_from_json, settings_to_json
from mos_server.fusion import methods
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods import METHODS, gradient, method_named

QUICK = {
    "contexts": ["V"],
    "ordinary": ["", "a tree"],
    "steps": 1,
    "text_iterations": 1,
    "unet_iterations": 1,
    "iterations": 2,
}


def test_every_file_is_in_the_list():
    """But for the one that says what a method is."""
    files = {file.stem for file in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "method"}
    assert files == {name.replace("-", "_") for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_one_function_of_the_same_signature_and_settings_that_say_what_they_mean(name):
    method = method_named(name)
    parameters = list(inspect.signature(method.merge).parameters)
    assert parameters == list(inspect.signature(gradient.merge).parameters)
    assert method.settings.method == name
    assert method.help.endswith(".")
    assert all(each.metadata["meaning"] for each in fields(method.settings))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_model_that_says_by_what_it_was_made(tiny, two, name):
    kind = method_named(name).settings
    settings = settings_from_json(kind, {k: v for k, v in QUICK.items() if k in {each.name for each in fields(kind)}})
    fused = fuse(tiny, two, settings)
    assert fused.manifest.method == name
    given, said = settings_to_json(settings), fused.manifest.settings
    assert said == given | {key: said[key] for key, value in given.items() if value is None}
    assert None not in [said.get(key, 0) for key in ("sharpen", "ridge", "preserve")], "a preset's numbers"
    assert sorted(fused.vocabulary) == ["<alice/cat>", "<bob/dog>"]
    assert fused.changes


def test_an_unknown_method_lists_the_known():
    with pytest.raises(RequestError, match="unknown method 'magic'; known: gradient, average, sum"):
        method_named("magic")
