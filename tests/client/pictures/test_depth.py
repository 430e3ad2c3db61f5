"""Grey pictures of more than 8 bits: what they show is what their 8-bit versions show."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from mos_client.pictures.reading import open_picture, read_mask, read_picture
from mos_common.errors import PicturesError

RAMP = np.linspace(0, 1, 96)[None].repeat(8, 0)


def tiff(path: Path, values: np.ndarray, *, sample_format: int, photometric: int = 1, order: str = "<") -> Path:
    """Write an uncompressed grey TIFF by hand."""
    bits, data = values.dtype.itemsize * 8, values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [
        *((256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric)),
        *((273, 8), (277, 1), (278, values.shape[0]), (279, len(data)), (339, sample_format)),
    ]
    start = b"II*\0" if order == "<" else b"MM\0*"
    table = struct.pack(f"{order}H", len(entries))
    table += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    path.write_bytes(start + struct.pack(f"{order}I", 8 + len(data)) + data + table)
    return path


def shown(path: Path) -> np.ndarray:
    return np.asarray(open_picture(path), dtype=int)[:, :, 0]


@pytest.mark.parametrize("how", ["png", "tif", "tif, big-endian", "tif, compressed"])
def test_sixteen_bits_and_eight_show_the_same_to_one_in_255(tmp_path, how):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    path = tmp_path / f"a.{how[:3]}"
    if how == "tif, big-endian":
        tiff(path, values, sample_format=1, order=">")
    else:
        Image.fromarray(values).save(path, **({"compression": "tiff_lzw"} if how.endswith("compressed") else {}))
    eight = np.rint(RAMP * 255).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "eight.png")
    assert np.abs(shown(path) - shown(tmp_path / "eight.png")).max() <= 1
    (note,) = read_picture(path).notes
    assert "16 bits a pixel" in note


@pytest.mark.parametrize(
    ("values", "sample_format"),
    [
        (np.rint(RAMP * (2**32 - 1)).astype(np.uint32), 1),
        (np.rint(RAMP * (2**31 - 1)).astype(np.int32), 2),
        (np.rint(RAMP * 32767).astype(np.int16), 2),
        (np.rint(RAMP * 65535).astype(np.int32), 2),
        (np.rint(RAMP * 255).astype(np.int32), 2),
        (np.rint(RAMP * 255).astype(np.uint16), 1),
        (RAMP.astype(np.float32), 3),
        ((RAMP * 255).astype(np.float32), 3),
    ],
)
def test_whatever_range_the_values_have_the_ramp_is_a_ramp(tmp_path, values, sample_format):
    path = tiff(tmp_path / "a.tif", values, sample_format=sample_format)
    assert np.abs(shown(path) - np.rint(RAMP * 255)).max() <= 1
    assert len(read_picture(path).notes) == 1


@pytest.mark.parametrize("values", [np.rint(RAMP * 65535).astype(np.uint16), RAMP.astype(np.float32)])
def test_where_white_is_zero_the_ramp_runs_the_other_way(tmp_path, values):
    kind = 3 if values.dtype == np.float32 else 1
    path = tiff(tmp_path / "a.tif", values, sample_format=kind, photometric=0)
    assert np.abs(shown(path) - np.rint((1 - RAMP) * 255)).max() <= 1


@pytest.mark.parametrize(
    ("values", "sample_format", "said"),
    [
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), 3, "not finite"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), 3, "not finite"),
        ((RAMP * 2).astype(np.float32), 3, "from 0 to 2, neither from 0 to 1 nor from 0 to 255"),
        ((RAMP * 4000).astype(np.float32), 3, "from 0 to 4000"),
        ((RAMP - 0.5).astype(np.float32), 3, "from -0.5 to 0.5"),
        (np.rint(RAMP * 4095).astype(np.uint16), 1, "up to 4095, so its range cannot be told"),
        (np.rint(RAMP * 100000).astype(np.int32), 2, "up to 100000, so its range cannot be told"),
        (np.rint(RAMP * 65535 - 32768).astype(np.int16), 2, "below zero"),
        (RAMP.astype(np.float64), 3, "a kind of pixels that is not read"),
    ],
)
def test_values_that_cannot_be_judged_are_refused_by_name(tmp_path, values, sample_format, said):
    path = tiff(tmp_path / "a.tif", values, sample_format=sample_format)
    with pytest.raises(PicturesError, match=r"a\.tif .*: save it as an 8-bit") as error:
        open_picture(path)
    assert said in str(error.value)


def test_the_one_transparent_grey_of_a_png_is_transparent(tmp_path):
    values = np.full((4, 4), 40000, np.uint16)
    values[:, 2:] = 3000
    Image.fromarray(values).save(tmp_path / "a.png", transparency=3000)
    read = read_picture(tmp_path / "a.png")
    assert [read.picture.getpixel((x, 0))[0] for x in (0, 3)] == [156, 255]
    assert [read.mask.getpixel((x, 0)) for x in (0, 3)] == [255, 0]


def test_colours_of_16_bits_are_read_and_planes_that_pillow_misreads_are_refused(tmp_path):
    """Pillow 13 takes three 16-bit planes for 8-bit ones."""
    planes = (np.stack([RAMP, RAMP[:, ::-1], RAMP * 0]) * 65535).astype("<u2")
    data, height, width = planes.tobytes(), *RAMP.shape
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[256], info[257], info[258], info[259], info[262] = width, height, (16, 16, 16), 1, 2
    info[277], info[278], info[284], info[339] = 3, height, 2, (1, 1, 1)
    info[273] = tuple(8 + i * len(data) // 3 for i in range(3))
    info[279] = (len(data) // 3,) * 3
    (tmp_path / "planes.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + info.tobytes(8 + len(data))
    )
    with pytest.raises(PicturesError, match=r"planes\.tif is a TIFF with 16-bit colours in separate planes"):
        open_picture(tmp_path / "planes.tif")


@pytest.mark.parametrize("kind", ["16 bits", "float"])
def test_masks_of_more_than_8_bits_mark_what_their_8_bit_versions_mark(tmp_path, kind):
    marked = RAMP > 0.5
    values = (marked * 65535).astype(np.uint16) if kind == "16 bits" else marked.astype(np.float32)
    path = tmp_path / ("a.mask.png" if kind == "16 bits" else "a.mask.tif")
    Image.fromarray(values).save(path)
    assert np.array_equal(np.asarray(read_mask(path, (96, 8))), marked * 255)
