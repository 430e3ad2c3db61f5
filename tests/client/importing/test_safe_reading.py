"""Files are read, never run: a pickle that would call a function is refused first."""

from __future__ import annotations

import collections
import io
import os
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from mos_client.importing import safe_reading
from mos_client.importing.safe_reading import read_tensors
from mos_common.errors import ConceptError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def as_torch_zip(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write any pickle into a file laid out as torch.save does it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return path


def refused(path: Path, said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        read_tensors(path)


@pytest.mark.parametrize("containers", [dict, collections.OrderedDict])
def test_tensors_in_plain_containers_are_read(tmp_path, containers):
    held = {"params": containers(TENSORS), "list": [torch.nn.Parameter(torch.ones(3)), 1, "x", None, True, 0.5]}
    torch.save(held, tmp_path / "a.pth")
    read, metadata = read_tensors(tmp_path / "a.pth")
    assert metadata == {}
    assert torch.equal(read["params"]["a"], TENSORS["a"])
    assert read["params"]["b"].dtype == torch.float16
    assert torch.equal(read["list"][0], torch.ones(3))
    assert read["list"][1:] == [1, "x", None, True, 0.5]


def test_safetensors_are_read_with_their_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "a.SafeTensors", {"ss_network_dim": "4"})
    read, metadata = read_tensors(tmp_path / "a.SafeTensors")
    assert torch.equal(read["a"], TENSORS["a"])
    assert metadata == {"ss_network_dim": "4"}


@pytest.mark.parametrize("where", ["alone", "among tensors", "deep", "as a key's tensor"])
def test_a_pickle_that_runs_a_command_is_refused_and_nothing_is_run(tmp_path, where):
    """The attack is real: Python's own unpickler runs it."""
    marker = tmp_path / "marker"
    attack = Calls(os.system, f"touch {marker}")
    held = {
        "alone": attack,
        "among tensors": {**TENSORS, "c": attack},
        "deep": {"params": {"unet": [[{"x": attack}]]}},
        "as a key's tensor": collections.OrderedDict(a=TENSORS["a"], b=(attack,)),
    }[where]
    torch.save(held, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"a\.pth is refused: it would call (posix|nt)\.system")
    assert not marker.exists()
    with suppress(Exception):
        torch.load(tmp_path / "a.pth", weights_only=False)
    assert marker.exists()


def eval_by(instruction: str, marker: Path) -> bytes:
    """A hand-written pickle that creates `marker` by eval, with one of several instructions."""
    argument = pickle.dumps(f"open({str(marker)!r}, 'w').close()", protocol=2)[2:-1]  # without its header and its end
    return {
        "GLOBAL": b"\x80\x02cbuiltins\neval\n" + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ibuiltins\neval\n.",
        "OBJ": b"(cbuiltins\neval\n" + argument + b"o.",
        "a computed name": b"\x80\x04\x8c\x08builtins\x94\x8c\x04eval\x940h\x00h\x01\x93" + argument + b"\x85R.",
    }[instruction]


@pytest.mark.parametrize("instruction", ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "a computed name"])
def test_eval_is_refused_however_it_is_named(tmp_path, instruction):
    marker = tmp_path / "marker"
    program = eval_by(instruction, marker)
    refused(as_torch_zip(tmp_path / "a.pt", program), "is refused: it would call")
    assert not marker.exists()
    pickle.loads(program)
    assert marker.exists()


def test_an_extension_s_number_is_refused(tmp_path):
    refused(as_torch_zip(tmp_path / "a.pt", b"\x80\x02\x82\x01."), r"an object\.by the instruction EXT1")


def test_a_pickle_without_a_zip_is_refused_unread(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "a.pt").write_bytes(eval_by("GLOBAL", marker))
    refused(tmp_path / "a.pt", "is a pickle of an old torch.save")
    torch.save(TENSORS, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "b.pt", "convert it to safetensors")
    assert not marker.exists()


def test_a_zip_behind_a_pickle_is_refused(tmp_path):
    """Python looks for a zip at the end of a file, torch at its beginning."""
    marker, harmless = tmp_path / "marker", io.BytesIO()
    torch.save(TENSORS, harmless)
    (tmp_path / "a.pt").write_bytes(eval_by("GLOBAL", marker) + harmless.getvalue())
    assert zipfile.is_zipfile(tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "is a pickle of an old torch.save")
    assert not marker.exists()


@pytest.mark.parametrize(
    "held", [{"a": np.ones(3)}, {"a": {1, 2}}, {"a": complex(1, 2)}, {"a": Path("x")}, {"a": torch.nn.Linear(1, 1)}]
)
def test_anything_but_tensors_in_plain_containers_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "is refused")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"a": b"bytes"}, "is refused"),
        ({1.5: torch.ones(1)}, "a float cannot name a tensor"),
        ({3: torch.ones(1)}, "expected named tensors"),
        ([torch.ones(1)], "holds a list; expected named tensors"),
        (torch.ones(1), "holds a Tensor; expected named tensors"),
    ],
)
def test_containers_without_names_are_refused(tmp_path, held, said):
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", said)


def test_a_zip_bomb_is_refused_unpacked_or_nested(tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(20_000_000))
    assert bomb.stat().st_size < 50_000
    refused(bomb, "not laid out as torch.save does")
    nested = tmp_path / "nested.pt"
    with zipfile.ZipFile(nested, "w") as archive:
        archive.write(bomb, "archive/data.pkl")
    refused(nested, "damaged")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A hundred entries share one megabyte: the directory claims more than the file holds."""
    path = as_torch_zip(tmp_path / "a.pt", b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
        one = archive.infolist()[-1]
        for i in range(1, 100):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            again.header_offset, again.CRC = one.header_offset, one.CRC
            again.file_size = again.compress_size = one.file_size
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    assert path.stat().st_size < 1_100_000
    refused(path, "not laid out as torch.save does")


def test_a_long_description_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("mos_common.safe_reading.MAX_PICKLE_BYTES", 100)
    refused(as_torch_zip(tmp_path / "a.pt", bytes(101)), "its pickle alone has 101 bytes")


def test_a_tensor_that_is_more_than_the_file_holds_is_refused(tmp_path):
    """One number expanded to a million by a million: four terabytes once it is used."""
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 5_000
    refused(tmp_path / "a.pt", r"a tensor of shape \(1000000, 1000000\) is larger than its data")


def test_containers_without_end_are_refused(tmp_path):
    held: object = torch.ones(1)
    for _ in range(12):
        held = {"a": held}
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "containers are nested")
    around: dict = {}
    around["a"] = around
    torch.save(around, tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "containers are nested")


def test_a_file_beyond_the_cap_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_reading, "MAX_BYTES", 10)
    torch.save(TENSORS, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "more than 10: that is not a LoRA")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64, torch.int16])
def test_every_number_format_that_tools_write_is_read_from_either_file(tmp_path, kind):
    held = {"a": torch.tensor([0.5, 1.0, 2.0]).to(kind)}
    torch.save(held, tmp_path / "a.pt")
    save_file(held, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        read, _ = read_tensors(tmp_path / name)
        assert read["a"].dtype == kind
        assert torch.equal(read["a"].float(), held["a"].float())


def test_a_file_is_what_its_content_is_and_not_what_it_is_called(tmp_path):
    save_file(TENSORS, tmp_path / "a.ckpt")
    torch.save(TENSORS, tmp_path / "b.safetensors")
    for name in ("a.ckpt", "b.safetensors"):
        assert torch.equal(read_tensors(tmp_path / name)[0]["a"], TENSORS["a"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><head><title>Log in", "is a web page"),
        (b"<html lang='en'>", "is a web page"),
        (b'{"error": "not found"}', "is a JSON file"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n", "is a picture"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
        (b"\x1f\x8b\x08\0", "is a gzip archive"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_each_kind_of_file_without_tensors_is_called_what_it_is(tmp_path, content, said, name):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, said)


def test_a_file_that_was_cut_short_says_so(tmp_path):
    for name, data in (("a.safetensors", SAVED["safetensors"]), ("a.pt", SAVED["pt"])):
        (tmp_path / name).write_bytes(data[:-20])
        refused(tmp_path / name, "is cut short.*Download it again")


def test_a_zip_archive_with_the_file_in_it_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.safetensors", "w") as archive:
        archive.writestr("lora.safetensors", SAVED["safetensors"])
    refused(tmp_path / "a.safetensors", "is a zip archive.*unpack it first")


def test_a_hypernetwork_is_called_so(tmp_path):
    layers = [{"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)}]
    torch.save({768: layers, "layer_structure": [1, 2, 1], "name": "x"}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "is a hypernetwork")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "nowhere.safetensors", r"nowhere\.safetensors cannot be read: No such file")
    refused(tmp_path / "nowhere.pt", r"nowhere\.pt cannot be read: No such file")


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\xff" * 100, b"PK\x03\x04" + bytes(60)])
def test_what_is_no_file_of_tensors_is_refused(tmp_path, content):
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, rf"{name} (is|cannot)")


def _saved() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"params": {**TENSORS, "list": [torch.nn.Parameter(torch.ones(2)), 1, "x"]}}, buffer)
    return {"pt": buffer.getvalue(), "safetensors": save(TENSORS)}


SAVED = _saved()


@settings(max_examples=200)
@given(st.sampled_from(["pt", "safetensors"]), st.data())
def test_damaged_bytes_are_never_more_than_a_concept_error(tmp_path_factory, kind, data):
    content = bytearray(SAVED[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with warnings.catch_warnings(action="ignore"), suppress(ConceptError):
        read_tensors(path)
