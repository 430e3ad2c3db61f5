"""The metadata of exported files, in the keys that other tools read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json

import pytest
from PIL import Image
from safetensors import safe_open

from mos_common.concept_file import write_concept
from mos_common.drawing import draw
from mos_common.edlora import attached
from mos_common.exporting.metadata import Family, family_of
from mos_common.pictures import as_image


def told(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_lora_says_what_it_is(folder, quickly, tiny, tmp_path):
    quickly(folder, tiny, "lora", tmp_path / "lora.safetensors")
    found = told(tmp_path / "lora.safetensors")
    assert found["modelspec.title"] == "Fused model of <alice/cat>, <bob/dog>"
    assert found["modelspec.license"] == "<alice/cat>: CC0; <bob/dog>: not given"
    assert found["modelspec.author"] == "<alice/cat>: Alice; <bob/dog>: not given"
    assert found["modelspec.trigger_phrase"] == "<alice/cat>, <bob/dog>"
    assert tiny.fingerprint in found["modelspec.description"]
    assert "drawn less well" in found["modelspec.description"]
    assert found["modelspec.resolution"] == "64x64"
    assert found["modelspec.prediction_type"] == "v"
    assert {key: text for key, text in found.items() if key.startswith("ss_")} == {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "5",
        "ss_network_alpha": "5.0",
        "ss_output_name": "lora",
    }


@pytest.mark.parametrize(
    ("kind", "family", "version", "is_2"),
    [
        ("sixteen", "stable-diffusion-v1", "sd_v1", "False"),
        ("like_2", "stable-diffusion-v2-768-v", "sd_v2_v", "True"),
        ("xl", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "False"),
    ],
)
def test_files_say_which_stable_diffusion_they_are_for(
    kind, request, make_concept, quickly, tmp_path, family, version, is_2
):
    """As Stability's ModelSpec and kohya's scripts call it."""
    base = request.getfixturevalue(kind)
    write_concept(make_concept(base, "<cat>", licence="CC0"), tmp_path / "cat.safetensors")
    quickly(tmp_path / "cat.safetensors", base, "lora", tmp_path / "out" / "cat.safetensors")
    quickly(tmp_path / "cat.safetensors", base, "single-file", tmp_path / "out" / "model.safetensors")
    lora = told(tmp_path / "out" / "cat.safetensors")
    words = told(tmp_path / "out" / "cat.words" / "cat.safetensors")
    assert lora["modelspec.sai_model_spec"] == "1.0.1"
    assert lora["modelspec.architecture"] == f"{family}/lora"
    assert (lora["ss_base_model_version"], lora["ss_v2"], lora["ss_network_dim"]) == (version, is_2, "2")
    assert words["modelspec.architecture"] == f"{family}/textual-inversion"
    assert told(tmp_path / "out" / "model.safetensors")["modelspec.architecture"] == family
    for found in (lora, words):
        assert (found["modelspec.license"], found["modelspec.trigger_phrase"]) == ("CC0", "<cat>")
        assert "modelspec.author" not in found


def test_stable_diffusion_2_that_predicts_noise_is_the_512_one(like_2):
    scheduler = type(like_2.scheduler).from_config({**like_2.scheduler.config, "prediction_type": "epsilon"})
    assert family_of(dataclasses.replace(like_2, scheduler=scheduler)) is Family.SD_2


def test_the_hash_is_that_of_the_tensors_and_the_header_is_in_one_order(folder, quickly, tiny, tmp_path):
    for name in ("one", "other"):
        quickly(folder, tiny, "lora", tmp_path / name / "lora.safetensors")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert [str(path) for path in files] == [
        "lora.safetensors",
        "lora.words/alice.cat.safetensors",
        "lora.words/bob.dog.safetensors",
    ]
    for path in files:
        data = (tmp_path / "one" / path).read_bytes()
        assert data == (tmp_path / "other" / path).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        assert list(header["__metadata__"]) == sorted(header["__metadata__"])
        assert header["__metadata__"]["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[end:]).hexdigest()}"


def test_text_beyond_ascii_keeps_the_header_whole(tiny, make_concept, quickly, tmp_path):
    author = 'Zoë "Ünï" \\ 猫 / é'
    write_concept(make_concept(tiny, "<cat>", author=author), tmp_path / "cat.safetensors")
    quickly(tmp_path / "cat.safetensors", tiny, "lora", tmp_path / "lora.safetensors")
    assert told(tmp_path / "lora.safetensors")["modelspec.author"] == author


def test_a_thumbnail_is_there_on_request_alone_and_is_a_drawing(tiny, make_concept, quickly, tmp_path):
    """The same drawing as ours, as a JPEG."""
    concept = make_concept(tiny, "<cat>")
    write_concept(concept, tmp_path / "cat.safetensors")
    quickly(tmp_path / "cat.safetensors", tiny, "words", tmp_path / "words")
    quickly(tmp_path / "cat.safetensors", tiny, "lora", tmp_path / "plain.safetensors")
    quickly(tmp_path / "cat.safetensors", tiny, "lora", tmp_path / "lora.safetensors", with_thumbnail=True)
    assert "modelspec.thumbnail" not in told(tmp_path / "plain.safetensors")
    kind, _, data = told(tmp_path / "lora.safetensors")["modelspec.thumbnail"].partition(";base64,")
    assert kind == "data:image/jpeg"
    words = {"<cat>": concept.words[0].half().float()}
    with attached(tiny, {name: pair.balanced() for name, pair in concept.pairs.items()}):
        expected = as_image(draw(tiny, ["a photo of <cat>"], [0], vocabulary=words)[0])
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert found.size == expected.size
    assert (
        max(
            abs(a - b)
            for a, b in zip(
                found.resize((1, 1)).getpixel((0, 0)), expected.resize((1, 1)).getpixel((0, 0)), strict=True
            )
        )
        < 8
    )
