"""What a picture's file says, written by us and read by other roads: chunks, segments, XML."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mos_common.drawing import Drawing
from mos_common.drawn_regions import drawn_region
from mos_common.errors import PicturesError, RequestError
from mos_common.picture_metadata import MADE_BY_A_MODEL, metadata, read_pixels, read_recipe
from mos_common.pictures import image_bytes
from mos_common.recipes import (
    MOST_BYTES,
    CreditedConcept,
    Machine,
    Model,
    Recipe,
    as_parameters,
    digest_of_pixels,
    machine_of,
    recipe_from_json,
    recipe_to_json,
    settings_of,
)
from mos_common.regions import Region
from mos_common.shapes import Box, Mask

BOMB = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
KINDS = {"PNG": "x.png", "JPEG": "x.jpg", "WEBP": "x.webp"}
IMAGE = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
MACHINE = Machine(release="0.2", versions={"torch": "2.9", "python": "3.11"}, device="cpu AVX2 x86_64", dtype="float32", threads=2)  # fmt: skip


def recipe(tiny=None, **changes: object) -> Recipe:
    told = {
        "prompt": "a (<alice/cat>:1.3), größer & “old” <3 \\(ha\\)\nsecond line 🐈",
        "regions": [drawn_region(Region("<alice/cat>", Box(0, 0, 0.5, 1)))],
        "seeds": [3, 4],
        "place": 1,
        "settings": {
            "steps": 20,
            "guidance": 2.5,
            "height": 32,
            "width": 48,
            "negative": "rain, fog",
            "scheduler": None,
        },
        "sampler": "DPMSolverMultistepScheduler",
        "model": Model(kind="fused", name="round-001", digest="ab" * 32),
        "base": "cd" * 32,
        "base_name": "tiny",
        "concepts": [CreditedConcept(token="<alice/cat>", digest="ef" * 32, author="Alice, of X", licence="CC BY 4.0")],
        "machine": MACHINE,
        "pixels": digest_of_pixels(IMAGE),
    }
    return Recipe.model_validate(told | changes)


def written(kind: str, of: Recipe | None, folder: Path) -> Path:
    (folder / KINDS[kind]).write_bytes(image_bytes(IMAGE, kind, **metadata(kind, of)))
    return folder / KINDS[kind]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read the chunks of a PNG by its specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        chunks.append((kind, body))
        at += 12 + length
    return chunks


def texts_of_png(data: bytes) -> dict[str, str]:
    found = {}
    for kind, body in png_chunks(data):
        key, _, rest = body.partition(b"\0")
        if kind == b"tEXt":
            found[key.decode("latin-1")] = rest.decode("latin-1")
        elif kind == b"iTXt":
            assert rest[:2] == b"\0\0", "not compressed"
            found[key.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
    return found


def segments(data: bytes, kind: str) -> list[bytes]:
    """Return the APP1 segments of a JPEG, or EXIF and XMP of a WebP, by specification."""
    found = []
    if kind == "JPEG":
        at = 2
        while data[at + 1] != 0xDA:
            (length,) = struct.unpack(">H", data[at + 2 : at + 4])
            if data[at + 1] == 0xE1:
                found.append(data[at + 4 : at + 2 + length])
            at += 2 + length
        return found
    at = 12
    while at < len(data):
        name, (length,) = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])
        if name in (b"EXIF", b"XMP "):
            found.append(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return found


def user_comment(tiff: bytes) -> str:
    """Read EXIF's UserComment (0x9286) of the Exif IFD (0x8769), by the specification of TIFF."""
    order = "<" if tiff[:2] == b"II" else ">"

    def entries(at: int) -> dict[int, tuple[int, bytes]]:
        (count,) = struct.unpack(order + "H", tiff[at : at + 2])
        rows = [tiff[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
        return {struct.unpack(order + "H", r[:2])[0]: (struct.unpack(order + "I", r[4:8])[0], r[8:]) for r in rows}

    (first,) = struct.unpack(order + "I", tiff[4:8])
    (exif,) = struct.unpack(order + "I", entries(first)[0x8769][1])
    size, value = entries(exif)[0x9286]
    (at,) = struct.unpack(order + "I", value)
    assert tiff[at : at + 8] == b"UNICODE\0"
    return tiff[at + 8 : at + size].decode("utf-16-be")


def xmp_in(data: bytes) -> str:
    return re.search(rb"<x:xmpmeta.*</x:xmpmeta>", data, re.DOTALL)[0].decode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_comes_back_from_each_format(kind, tmp_path):
    assert read_recipe(written(kind, recipe(), tmp_path)) == recipe()


def test_a_png_says_it_in_the_keys_of_the_web_ui(tmp_path):
    data = written("PNG", recipe(), tmp_path).read_bytes()
    texts = texts_of_png(data)
    assert texts["parameters"] == as_parameters(recipe())
    assert json.loads(texts["mos-recipe"])["prompt"] == recipe().prompt
    assert {"prompt", "workflow"}.isdisjoint(texts), "these are graphs of ComfyUI, and there is none"
    kinds = [kind for kind, _ in png_chunks(data)]
    assert kinds.index(b"IDAT") > max(i for i, kind in enumerate(kinds) if kind in (b"tEXt", b"iTXt"))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_jpeg_and_a_webp_say_it_in_the_user_comment(kind, tmp_path):
    exif, xmp = segments(written(kind, recipe(), tmp_path).read_bytes(), kind)
    assert user_comment(exif.removeprefix(b"Exif\0\0")) == as_parameters(recipe())
    assert b"DigitalSourceType" in xmp
    assert kind == "WEBP" or xmp.startswith(b"http://ns.adobe.com/xap/1.0/\0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [recipe(), None], ids=["recipe", "preview"])
def test_every_format_says_by_iptc_that_a_model_made_it(kind, of, tmp_path):
    xmp = xmp_in(written(kind, of, tmp_path).read_bytes())
    assert (
        f"<Iptc4xmpExt:DigitalSourceType>{MADE_BY_A_MODEL}</Iptc4xmpExt:DigitalSourceType>" in xmp
        and 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"' in xmp
    )
    assert MADE_BY_A_MODEL == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert ("<mos:recipe>" in xmp) == (of is not None)


def test_the_text_of_the_web_ui_is_as_its_readers_split_it():
    """Its last line is split at ", " and ": "; ComfyUI asks for the line of the negative prompt."""
    text = as_parameters(recipe())
    prompt, line = text.rsplit("\nNegative prompt: ", 1)
    negative, last = line.rsplit("\n", 1)
    assert (prompt, negative) == (recipe().prompt, "rain, fog")
    assert last.startswith("Steps: 20, ")
    values = dict(each.split(": ") for each in last.split(", "))
    assert values["Sampler"] == "DPM++ 2M"
    assert values["CFG scale"] == "2.5"
    assert values["Seed"] == "4"
    assert values["Size"] == "48x32"
    assert values["Model hash"] == "ab" * 5
    assert values["Model"] == "round-001"
    assert values["Concepts"] == "<alice/cat>"
    assert (values["Batch size"], values["Batch pos"]) == ("2", "1")
    assert "\nNegative prompt: \nSteps" in as_parameters(recipe(settings=recipe().settings | {"negative": ""}))


def test_xmp_that_another_program_wrote_again_is_read_as_well(tmp_path):
    """As an attribute, under another prefix, in a PNG that lost its own texts."""
    own = json.dumps(recipe_to_json(recipe()))[1:-1].replace("&", "&amp;").replace("<", "&lt;").replace('\\"', "&quot;")
    own = own.replace("\\\\", "\\")
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:n="urn:federated-mix-of-show:recipe:1:" n:recipe="{own}"/></rdf:RDF></x:xmpmeta>'
    )
    IMAGE.save(tmp_path / "x.jpg", xmp=packet.encode())
    assert read_recipe(tmp_path / "x.jpg") == recipe()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_without_a_recipe_says_so(kind, tmp_path):
    IMAGE.save(tmp_path / KINDS[kind])
    with pytest.raises(PicturesError, match=r"has no recipe: it was not drawn by `mos-client draw`, or a program"):
        read_recipe(tmp_path / KINDS[kind])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, r"'format': .*later release"),
        ({"unknown": 1}, "unknown"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0] * 65}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"place": 2}, "place 2 in a batch of 2"),
        ({"settings": {"steps": 10**9}}, "steps: expected 1 to 1000"),
        ({"settings": {"stepps": 3}}, "unknown setting 'stepps'"),
        ({"regions": [{"prompt": "x"}]}, "'x' needs one of box and mask"),
        ({"regions": [{"prompt": "x", "box": [1, 0, 0, 1]}]}, "expected x0,y0,x1,y1"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1, 1], "start": 1}]}, "shares of the steps"),
        ({"regions": [{"prompt": "x", "mask": {"width": 2, "height": 2, "grey": "?"}}]}, "a mask cannot be unpacked"),
        ({"regions": [{"prompt": "x", "mask": {"width": 2, "height": 2, "grey": BOMB}}]}, "has not the 2 x 2 pixels"),
        ({"prompt": "a" * 10_001}, "prompt"),
        ({"model": {"kind": "fused", "name": "x", "digest": "ab"}}, "digest"),
        ({"machine": MACHINE.model_dump() | {"threads": 10**6}}, "threads"),
    ],
)
def test_a_damaged_recipe_is_refused_by_name(change, said):
    told = json.loads(recipe_to_json(recipe())) | change
    with pytest.raises(PicturesError, match=said) as error:
        recipe_from_json(json.dumps(told), "x.png")
    assert "x.png" in str(error.value)


def test_a_recipe_larger_than_any_and_xml_that_expands_are_refused(tmp_path):
    with pytest.raises(PicturesError, match="larger than 1 MB"):
        recipe_from_json("x" * (MOST_BYTES + 1), "x.png")
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]>' + metadata("WEBP", recipe())["xmp"].decode()
    IMAGE.save(tmp_path / "x.webp", xmp=bomb.encode())
    with pytest.raises(PicturesError, match="has no recipe"):
        read_recipe(tmp_path / "x.webp")
    (tmp_path / "no.png").write_bytes(b"no picture")
    for read in (read_recipe, read_pixels):
        with pytest.raises(PicturesError, match=r"no\.png cannot be read as a PNG, JPEG or WebP"):
            read(tmp_path / "no.png")


def test_a_jpeg_refuses_a_recipe_that_it_cannot_hold():
    long = recipe(prompt="🐈" * 9_000)
    with pytest.raises(RequestError, match=r"a JPEG holds 60,000: give --out a \.png or a \.webp"):
        metadata("JPEG", long)
    for kind in ("PNG", "WEBP"):
        with Image.open(io.BytesIO(image_bytes(IMAGE, kind, **metadata(kind, long)))) as read:
            assert read.format == kind


def test_settings_are_written_out_with_the_numbers_of_the_base(tiny):
    told = settings_of(Drawing(steps=3, width=128), tiny)
    assert (told["height"], told["width"], told["guidance"]) == (64, 128, tiny.preset.guidance)
    assert recipe(settings=told).drawing() == Drawing(steps=3, width=128, height=64, guidance=tiny.preset.guidance)


def test_regions_come_back_with_their_masks_and_without_their_files():
    mask = Mask(3, 2, bytes([0, 255, 9, 0, 1, 2]), "/home/alice/mask.png")
    regions = [
        Region("<cat> (big:1.2)", Box(0, 0.25, 0.5, 1), negative="snow", weight=2, priority=1),
        Region("b", mask, edge=0.1, keeps=0.2, start=0.25, end=0.75),
    ]
    told = recipe(regions=[drawn_region(region) for region in regions])
    assert "alice/mask" not in recipe_to_json(told)
    read = [each.region() for each in recipe_from_json(recipe_to_json(told), "x.png").regions]
    assert read == [regions[0], replace(regions[1], shape=replace(mask, name="of the recipe"))]


def test_masks_that_make_a_recipe_too_large_are_refused():
    noise = random.Random(0).randbytes(1200 * 1200)
    with pytest.raises(RequestError, match=r"the masks make a recipe of .* give masks of plain white and black"):
        recipe_to_json(recipe(regions=[drawn_region(Region("x", Mask(1200, 1200, noise)))]))


def test_a_machine_is_told_by_what_decides_the_last_bits(tiny):
    now = machine_of(tiny)
    assert now.device.startswith("cpu ")
    assert now.differences(now) == []
    other = now.model_copy(update={"threads": now.threads + 1, "versions": now.versions | {"torch": "1.0"}})
    said = other.differences(now)
    assert f"threads {now.threads + 1} then, {now.threads} now" in said
    assert any(each.startswith("torch 1.0 then, ") for each in said)
    assert len(said) == 2
