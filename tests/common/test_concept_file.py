"""The concept file: written canonically, read strictly, and failing only by ConceptError."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from mos_common.concept import Concept
from mos_common.concept_file import (
    MAX_BYTES,
    concept_from_bytes,
    concept_tensors,
    concept_to_bytes,
    content_digest,
    read_concept,
    write_concept,
)
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, StateError

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def small(seed: int = 0, **changes: object) -> Concept:
    g = torch.Generator().manual_seed(seed)
    pairs = {
        LAYER: LowRank(torch.randn(2, 5, generator=g), torch.randn(3, 2, generator=g), 2.0),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": LowRank(
            torch.randn(1, 4, generator=g), torch.randn(4, 1, generator=g), 3.0
        ),
    }
    made = Concept("<cat>", "cat", "ab" * 32, pairs, (torch.randn(3, 2, 4, generator=g),), "a test", "CC0", "Alice")
    return replace(made, **changes)


def parts(data: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a concept file and what its metadata says."""
    described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(described["__metadata__"]["mos"])


def rewritten(change: Callable[[dict[str, torch.Tensor], dict], None]) -> bytes:
    """A good concept file after `change` has broken its tensors or metadata."""
    tensors, header = parts(concept_to_bytes(small()))
    change(tensors, header)
    return save({k: v.contiguous() for k, v in tensors.items()}, {"mos": json.dumps(header)})


def raw(described: object, payload: bytes = b"") -> bytes:
    """A safetensors file of any header whatsoever."""
    header = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(header)) + header + payload


def test_what_is_read_is_what_was_written(base, make_concept):
    concept = make_concept(base, licence="CC BY 4.0", author="Zoë")
    back = concept_from_bytes(concept_to_bytes(concept, torch.float32))
    for field in ("name", "class_word", "base_fingerprint", "tool_version", "licence", "author"):
        assert getattr(back, field) == getattr(concept, field)
    assert back.pairs.keys() == concept.pairs.keys()
    for name, pair in concept.pairs.items():
        torch.testing.assert_close(back.pairs[name].change(), pair.change(), rtol=1e-5, atol=1e-6)
        assert back.pairs[name].rank == pair.rank
    assert torch.equal(back.words[0], concept.words[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_reading_and_writing_again_gives_the_same_file(base, make_concept, dtype):
    data = concept_to_bytes(make_concept(base), dtype)
    assert concept_to_bytes(concept_from_bytes(data), dtype) == data


def test_half_precision_costs_a_thousandth(base, make_concept):
    concept = make_concept(base)
    back = concept_from_bytes(concept_to_bytes(concept))
    for name, pair in concept.pairs.items():
        assert back.pairs[name].A.dtype == torch.float16
        error = (back.pairs[name].change() - pair.change()).norm() / pair.change().norm()
        assert error < 1e-3


def test_equal_concepts_are_equal_bytes_whatever_the_order():
    concept = small()
    turned = replace(concept, pairs=dict(reversed(concept.pairs.items())))
    strided = replace(concept, words=(concept.words[0].transpose(0, 2).contiguous().transpose(0, 2),))
    assert (
        concept_to_bytes(concept) == concept_to_bytes(turned) == concept_to_bytes(strided) == concept_to_bytes(small())
    )


def test_different_concepts_are_different_bytes():
    assert concept_to_bytes(small()) != concept_to_bytes(small(seed=1))


def test_alpha_is_the_rank_in_the_file():
    header = parts(concept_to_bytes(small()))[1]
    assert header["layers"] == {name: [pair.rank, float(pair.rank)] for name, pair in small().pairs.items()}


def test_another_alpha_written_by_hand_is_read_as_it_is():
    def halve(_tensors, header):
        header["layers"][LAYER] = [2, 1.0]

    assert concept_from_bytes(rewritten(halve)).pairs[LAYER].scale == 0.5


def test_the_file_holds_the_tensors_and_one_metadata_key_and_nothing_else(tmp_path):
    write_concept(small(), tmp_path / "cat.safetensors")
    data = (tmp_path / "cat.safetensors").read_bytes()
    described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert described.pop("__metadata__").keys() == {"mos"}
    assert described.keys() == concept_tensors(small()).keys()
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + sum(
        2 * t.numel() for t in concept_tensors(small()).values()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["cat.safetensors"]


def test_a_concept_without_words_is_legal():
    assert concept_from_bytes(concept_to_bytes(small(words=()))).words == ()


def test_the_digest_is_of_the_tensors_only():
    concept = concept_from_bytes(concept_to_bytes(small()))
    digest = content_digest(concept)
    edited = replace(concept, licence="MIT", author="Bob", tool_version="2", class_word="dog", name="<dog>")
    assert content_digest(edited) == digest
    assert content_digest(concept_from_bytes(concept_to_bytes(edited))) == digest


@pytest.mark.parametrize("what", ["value", "dtype", "alpha", "layer", "words"])
def test_any_other_change_is_another_digest(what):
    concept = small()
    pair = concept.pairs[LAYER]
    others = {name: p for name, p in concept.pairs.items() if name != LAYER}
    changed = {
        "value": replace(concept, pairs={**others, LAYER: replace(pair, A=pair.A + 1e-3)}),
        "dtype": replace(concept, pairs={**others, LAYER: replace(pair, A=pair.A.half())}),
        "alpha": replace(concept, pairs={**others, LAYER: replace(pair, alpha=7.0)}),
        "layer": replace(concept, pairs={**others, LAYER.replace("to_k", "to_v"): pair}),
        "words": replace(concept, words=()),
    }[what]
    assert content_digest(changed) != content_digest(concept)


def drop(name: str):
    return lambda tensors, _header: tensors.pop(name)


def put(name: str, value: torch.Tensor):
    return lambda tensors, _header: tensors.__setitem__(name, value)


def say(**fields: object):
    return lambda _tensors, header: header.update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("pickle", torch.zeros(1)), "tensor 'pickle' is not part of"),
        (put("embeddings.7", torch.zeros(3, 2, 4)), "tensor 'embeddings.7' is not part of"),
        (put(f"{LAYER}.alpha", torch.zeros(1)), "alpha' is not part of"),
        (put("vae.x.lora_A.weight", torch.zeros(1, 1)), "is not part of"),
        (drop(f"{LAYER}.lora_A.weight"), f"{LAYER} has only lora_B"),
        (drop(f"{LAYER}.lora_B.weight"), f"{LAYER} has only lora_A"),
        (put("unet.a.lora_A.weight", torch.zeros(1, 1)), "unet.a.* in the tensors or in the metadata"),
        (say(layers={}), "in the tensors or in the metadata"),
        (put(f"{LAYER}.lora_A.weight", torch.zeros(3, 5)), f"{LAYER}.*not a pair of rank 2"),
        (put(f"{LAYER}.lora_B.weight", torch.zeros(3)), f"{LAYER}.*not a pair of rank 2"),
        (lambda _t, h: h["layers"].__setitem__(LAYER, [3, 3.0]), f"{LAYER}.*not a pair of rank 3"),
        (lambda _t, h: h["layers"].__setitem__(LAYER, [2, -1.0]), f"{LAYER}.*alpha -1.0"),
        (lambda _t, h: h["layers"].__setitem__(LAYER, [2, float("inf")]), f"{LAYER}.*alpha inf|layers"),
        (lambda _t, h: h["layers"].__setitem__(LAYER, [2, float("nan")]), f"{LAYER}.*alpha nan|layers"),
        (lambda _t, h: h["layers"].__setitem__(LAYER, "2"), "metadata field 'layers"),
        (put(f"{LAYER}.lora_A.weight", torch.full((2, 5), torch.nan)), f"{LAYER}.lora_A.weight.*NaN or infinity"),
        (put("embeddings.0", torch.full((3, 2, 4), -torch.inf)), "embeddings.0.*NaN or infinity"),
        (
            put(f"{LAYER}.lora_A.weight", torch.zeros(2, 5, dtype=torch.float64)),
            f"{LAYER}.lora_A.weight' is torch.float64",
        ),
        (put(f"{LAYER}.lora_A.weight", torch.zeros(2, 5, dtype=torch.int8)), "is torch.int8"),
        (put(f"{LAYER}.lora_A.weight", torch.zeros(2, 5, dtype=torch.complex64)), "is torch.complex64"),
        (put("embeddings.0", torch.zeros(2, 4)), "embeddings.0 has shape"),
        (put("embeddings.0", torch.zeros(3, 17, 4)), "embeddings.0 has shape"),
        (put("embeddings.0", torch.zeros(3, 0, 4)), "embeddings.0 has shape"),
        (lambda t, _h: t.__setitem__("embeddings.1", t.pop("embeddings.0")), "embeddings.1 needs embeddings.0"),
        (say(name="<CAT>"), "metadata field 'name'"),
        (say(name="cat"), "metadata field 'name'"),
        (say(name="<cat>\n"), "metadata field 'name'"),
        (say(base="tiny"), "metadata field 'base'"),
        (say(format=2), "metadata field 'format'"),
        (say(author="x" * 501), "metadata field 'author'"),
        (say(licence="\x1b[2Jgone"), "metadata field 'licence'"),
        (say(class_word="cat\n"), "metadata field 'class_word'"),
        (say(more=1), "metadata field 'more'"),
        (lambda _t, h: h.pop("author"), "metadata field 'author'"),
        (lambda _t, h: h["layers"].__setitem__("\x1b[2J", [1, 1.0]), r"metadata field 'layers.\\x1b"),
    ],
)  # fmt: skip
def test_what_does_not_belong_is_refused_by_name(change, message):
    with pytest.raises(ConceptError, match=message):
        concept_from_bytes(rewritten(change))


def test_a_rank_beyond_the_cap_is_refused():
    def grow(tensors, header):
        tensors[f"{LAYER}.lora_A.weight"], tensors[f"{LAYER}.lora_B.weight"] = torch.zeros(257, 5), torch.zeros(3, 257)
        header["layers"][LAYER] = [257, 257.0]

    with pytest.raises(ConceptError, match="1 to 256"):
        concept_from_bytes(rewritten(grow))


def test_two_metadata_keys_are_refused():
    """safetensors writes several keys in random order: equal concepts would be different files."""
    tensors, header = parts(concept_to_bytes(small()))
    data = save(tensors, {"mos": json.dumps(header), "format": "pt"})
    with pytest.raises(ConceptError, match="the one metadata key 'mos'"):
        concept_from_bytes(data)
    with pytest.raises(ConceptError, match="the one metadata key 'mos'"):
        concept_from_bytes(save(tensors))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"12345678",
        b"not a safetensors file at all",
        struct.pack("<Q", 2**63) + b"{}" * 10,
        struct.pack("<Q", 2**20 + 1) + b" " * (2**20 + 1),
        raw(b"\xff\xfe{}"),
        raw([]),
        raw(None),
        raw("mos"),
        raw({"__metadata__": ["mos"]}),
        raw({"__metadata__": "mos"}),
        raw({"__metadata__": None}),
        raw({"__metadata__": {"mos": 1}}),
        raw({"__metadata__": {"mos": "[]"}}),
        raw({"__metadata__": {"mos": "{"}}),
        raw(b"[" * 100_000),
        raw({"__metadata__": {"mos": "[" * 100_000}}),
    ],
)
def test_nonsense_is_a_concept_error(data):
    with pytest.raises(ConceptError):
        concept_from_bytes(data)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "F8_E5M2", "F8_E8M0", "U64", "BOOL", "C64", "F999"])
def test_number_formats_of_other_versions_are_a_concept_error(dtype):
    header = json.dumps(parts(concept_to_bytes(small()))[1])
    size = {"F4": 1, "U64": 16, "C64": 16}.get(dtype, 2)
    described = {
        "__metadata__": {"mos": header},
        "embeddings.0": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]},
    }
    with pytest.raises(ConceptError):
        concept_from_bytes(raw(described, bytes(size)))


def test_too_many_tensors_are_refused():
    described = {f"t{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(5000)}
    with pytest.raises(ConceptError, match="at most 4096 tensors"):
        concept_from_bytes(raw({"__metadata__": {"mos": "{}"}, **described}))


def test_a_file_beyond_the_cap_is_not_even_read(tmp_path, monkeypatch):
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _self: pytest.fail("read it"))
    with pytest.raises(ConceptError, match=r"huge\.safetensors.*at most"):
        read_concept(huge)


def test_a_file_cut_off_anywhere_is_refused():
    data = concept_to_bytes(small())
    for length in [*range(0, 64), *range(64, len(data), 7), len(data) - 1]:
        with pytest.raises(ConceptError):
            concept_from_bytes(data[:length])
    with pytest.raises(ConceptError):
        concept_from_bytes(data + b"\0")


GOOD = concept_to_bytes(small())


def read_or_refuse(data: bytes) -> None:
    """Reading gives a concept that can be written again, or raises ConceptError."""
    try:
        concept = concept_from_bytes(data)
    except ConceptError as error:
        assert "\x1b" not in str(error)
        return
    assert all(tensor.isfinite().all() for tensor in concept_tensors(concept).values())
    content_digest(concept)


@given(st.binary(max_size=300))
def test_random_bytes_are_never_more_than_a_concept_error(data):
    read_or_refuse(data)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_are_never_more_than_a_concept_error(flips):
    data = bytearray(GOOD)
    for position, value in flips:
        data[position] = value
    read_or_refuse(bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_header_is_never_more_than_a_concept_error(described):
    read_or_refuse(raw(described))
    read_or_refuse(raw({"__metadata__": {"mos": json.dumps(described)}}))


@given(st.sampled_from(["format", "name", "class_word", "base", "layers", "tool", "licence", "author"]), JSON)
def test_any_metadata_is_never_more_than_a_concept_error(field, value):
    read_or_refuse(rewritten(lambda _tensors, header: header.__setitem__(field, value)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConceptError, match=r"nowhere\.safetensors cannot be read: No such file"):
        read_concept(tmp_path / "nowhere.safetensors")


def test_a_folder_is_no_concept_file(tmp_path):
    with pytest.raises(ConceptError, match="cannot be read"):
        read_concept(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(GOOD[:-1])
    with pytest.raises(ConceptError, match=r"broken\.safetensors is not a usable concept file"):
        read_concept(tmp_path / "broken.safetensors")


def test_values_too_large_for_half_precision_are_refused_and_nothing_is_written(tmp_path):
    huge = small(words=(torch.full((3, 2, 4), 1e6),))
    with pytest.raises(ConceptError, match=r"embeddings\.0.*NaN or infinity"):
        write_concept(huge, tmp_path / "cat.safetensors")
    assert not list(tmp_path.iterdir())
    write_concept(huge, tmp_path / "cat.safetensors", torch.float32)


@pytest.mark.parametrize(
    "field",
    [
        {"author": "x" * 501},
        {"licence": "a\tb"},
        {"class_word": "c" * 65},
        {"class_word": "c\u202eat"},
        {"author": "Jose\u0301"},
        {"trigger": "ohwx\u200b cat"},
    ],
)
def test_texts_that_could_not_be_read_again_are_not_written(field):
    with pytest.raises(ConceptError, match=f"cannot be written: metadata field '{next(iter(field))}'"):
        concept_to_bytes(small(**field))


def test_a_place_that_cannot_be_written_is_a_state_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        write_concept(small(), tmp_path / "file" / "cat.safetensors")
