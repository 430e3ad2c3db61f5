"""Digests: equal values agree in any order and layout, and comments are not code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mos_common.digests import (
    bits_of,
    code_of,
    digest_of_bytes,
    digest_of_code,
    digest_of_file,
    digest_of_json,
    digest_of_tensors,
    modules_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SOURCE = '''"""A module."""

LIMIT = 3
"""How many."""


class Box:
    """A box."""

    def open(self, wide: bool = False) -> int:
        """Open it."""
        return LIMIT if wide else 1


def nothing() -> None:
    """Do nothing."""
'''


@given(value=JSON)
def test_json_has_one_digest_whatever_the_order_of_its_keys(value):
    shuffled = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert digest_of_json(shuffled) == digest_of_json(value)


def test_json_that_differs_has_another_digest():
    values = [{}, [], None, 0, "0", False, {"a": 1}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1], [[1], 2], ""]
    assert len({digest_of_json(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1), {1, 2}])
def test_what_json_cannot_say_has_no_digest(value):
    with pytest.raises((TypeError, ValueError)):
        digest_of_json(value)


def test_a_file_has_the_digest_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert digest_of_file(tmp_path / "file") == digest_of_bytes(data) == hashlib.sha256(data).hexdigest()


def test_tensors_are_hashed_with_name_format_shape_and_bits():
    """The bytes by hand: concept files are known by this digest, so it never changes."""
    tensors = {"b": torch.tensor([[1.0, 2.0]], dtype=torch.float16), "a": torch.tensor([3.0])}
    expected = hashlib.sha256(
        b"a\0F32\0(1,)\0" + b"\x00\x00\x40\x40" + b"b\0F16\0(1, 2)\0" + b"\x00\x3c\x00\x40" + b"and more"
    )
    assert digest_of_tensors(tensors, also=b"and more") == expected.hexdigest()


def test_tensors_have_one_digest_whatever_their_order_and_layout():
    values = torch.randn(3, 4, 5, 6)
    laid_out = values.to(memory_format=torch.channels_last)
    assert laid_out.stride() != values.stride()
    one = digest_of_tensors({"x": values, "y": values[:1, :1]})
    assert digest_of_tensors({"y": laid_out[:1, :1], "x": laid_out}) == one


@pytest.mark.parametrize(
    "other",
    [
        {"y": torch.arange(6.0)},
        {"x": torch.arange(6.0).reshape(2, 3)},
        {"x": torch.arange(6.0).half()},
        {"x": torch.arange(6.0).bfloat16()},
        {"x": torch.arange(6)},
        {"x": torch.arange(6.0) * torch.tensor([1, 1, 1, 1, 1, 1 + 1e-6])},
        {"x": -torch.arange(6.0)},  # minus zero is not zero
        {},
    ],
)
def test_other_tensors_have_another_digest(other):
    assert digest_of_tensors(other) != digest_of_tensors({"x": torch.arange(6.0)})


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_the_bits_of_any_tensor_can_be_read(shape, dtype):
    tensor = torch.ones(shape, dtype=dtype)
    assert bytes(bits_of(tensor)) == bytes(bits_of(torch.ones(1, dtype=dtype))) * tensor.numel()


def test_the_bits_of_one_element_of_a_wide_tensor_can_be_read():
    """Its stride is that of the wide tensor."""
    one = torch.arange(192.0).half()[96::96]
    assert one.shape == (1,)
    assert one.stride() == (96,)
    assert bytes(bits_of(one)) == torch.tensor(96.0).half().numpy().tobytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda source: source.replace('"""Open it."""', '"""Open the box, wide or not."""'),
        lambda source: source.replace('        """Open it."""\n', ""),
        lambda source: source.replace('"""How many."""\n', ""),
        lambda source: source.replace('"""A module."""', "# a module"),
        lambda source: source.replace("LIMIT = 3", "LIMIT = 3  # as in the paper"),
        lambda source: source.replace("LIMIT if wide else 1", "(LIMIT\n            if wide else 1)"),
        lambda source: source.replace("\n\n\n", "\n\n\n\n"),
    ],
)
def test_comments_docstrings_and_layout_are_not_code(change):
    assert change(SOURCE) != SOURCE
    assert code_of(change(SOURCE)) == code_of(SOURCE)


@pytest.mark.parametrize(
    "change",
    [
        lambda source: source.replace("LIMIT = 3", "LIMIT = 4"),
        lambda source: source.replace("wide: bool = False", "wide: bool = True"),
        lambda source: source.replace("if wide", "if not wide"),
        lambda source: source + "\nnothing()\n",
        lambda source: source.replace("Box", "Crate"),
    ],
)
def test_any_other_change_is_one_of_the_code(change):
    assert code_of(change(SOURCE)) != code_of(SOURCE)


def test_code_without_docstrings_is_still_python():
    """A function of nothing but a docstring keeps a body."""
    namespace: dict[str, object] = {}
    exec(code_of(SOURCE), namespace)
    assert namespace["Box"]().open(wide=True) == 3
    assert namespace["nothing"]() is None


def test_a_module_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for source in (SOURCE, SOURCE.replace("Open it", "Open the box"), SOURCE.replace("LIMIT = 3", "LIMIT = 4")):
        (tmp_path / "boxes_of_a_test.py").write_text(source)
        digest_of_code.cache_clear()
        digests.append(digest_of_code(("boxes_of_a_test",)))
    assert digests[0] == digests[1] != digests[2]


def test_a_module_that_is_not_there_is_named():
    """A list of modules that was not kept up to date does not go unnoticed."""
    with pytest.raises(ModuleNotFoundError, match=r"no module mos_common\.nowhere"):
        digest_of_code(("mos_common.nowhere",))
    with pytest.raises(ModuleNotFoundError, match=r"no package mos_common\.files"):
        modules_of("mos_common.files")


def test_all_modules_of_a_package_are_found():
    folder = Path(modules_file("mos_common")).parent
    files = {file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py")}
    names = {".".join(file.parent.parts if file.name == "__init__" else file.parts) for file in files} - {""}
    assert {name.partition(".")[2] for name in modules_of("mos_common")} == names


def modules_file(package: str) -> str:
    import importlib

    return str(importlib.import_module(package).__file__)
