"""Files that somebody wrote to do harm, one by one: what each says, and why it would hurt."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from fuzz import bases, hostile_texts, hostile_wire

HUGE = (2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
HOSTILE_TEXTS = {
    "nothing": b"",
    "a zero byte": b"a\0b",
    "only zeros": b"\0" * 4096,
    "all bytes": bytes(range(256)),
    "broken UTF-8": b"\xc3\x28 a cat",
    "half a UTF-16 pair": "a cat".encode("utf-16")[:-1],
    "a lone surrogate in UTF-16": b"\xff\xfe\x00\xd8",
    "UTF-7": b"+/v8-",
    "escapes of a terminal": b"\x1b]0;title\x07\x1b[2J",
    "right to left": "cat \u202egnp.exe".encode(),
    "a million words": b"cat " * 1_000_000,
    "a million lines": b"\n" * 1_000_000,
    "one long line": b"c" * 3_000_000,
    "markup": b"<script>alert(1)</script>" * 50,
    "accents": ("e" + "\u0301" * 50_000).encode(),
    "a zip": zlib.compress(b"\0" * 1_000_000),
}


def hostile(kind: str, good: bytes) -> dict[str, bytes]:
    """Return hostile files for a reader, by what is wrong with each; `good` is one that is not."""
    made = dict(HOSTILE_TEXTS)
    made |= {f"cut after {share} of 8 parts": good[: len(good) * share // 8] for share in range(1, 8)}
    made |= {"twice": good * 2, "something behind": good + b"\0" * 100_000}
    made |= OF_KIND.get(kind, lambda _good: {})(good)
    return made


def safetensors_files(_good: bytes) -> dict[str, bytes]:
    """Headers that lie about lengths, offsets, shapes and types."""
    made: dict[str, bytes] = {f"a header of {n} bytes": struct.pack("<Q", n) + b"{}" for n in HUGE}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for n in HUGE:
        made[f"an offset of {n}"] = raw({"a": entry | {"data_offsets": [0, n]}}, b"\0" * 4)
        made[f"a shape of {n}"] = raw({"a": entry | {"shape": [n, n]}}, b"\0" * 4)
    for dtype in ("F8_E4M3", "U64", "BOOL", "C64", "Q4", "", "../x", None, 7):
        made[f"the type {dtype}"] = raw({"a": entry | {"dtype": dtype}}, b"\0" * 4)
    for shape in ([-1], [1, -1], [0] * 1000, [[]], "1", [1.5], [True], None):
        made[f"the shape {str(shape)[:20]}"] = raw({"a": entry | {"shape": shape}}, b"\0" * 4)
    made["overlapping tensors"] = raw(dict.fromkeys("ab", entry), b"\0" * 4)
    made["a hole"] = raw({"a": entry, "b": entry | {"data_offsets": [8, 12]}}, b"\0" * 12)
    made["100,000 tensors"] = raw({f"t{n}": entry | {"shape": [0], "data_offsets": [0, 0]} for n in range(100_000)})
    made["no object"] = raw([])
    made["nested lists"] = struct.pack("<Q", 100_000) + b"[" * 100_000
    made["a key twice"] = raw(b'{"a":' + json.dumps(entry).encode() + b',"a":' + json.dumps(entry).encode() + b"}")
    for name in ("../../etc/passwd", "a\0b", "\u202e", "x" * 100_000, "", "unet." * 1000, "lora_unet_" + "_" * 5000):
        made[f"a tensor called {name[:16]!r}"] = save({name: torch.ones(2, 2)})
    for value in (float("nan"), float("inf"), 3e38, 1e-45):
        made[f"full of {value}"] = save({"emb_params": torch.full((2, 24), value)})
    for text in (
        "[" * 50_000,
        '{"a":' * 20_000,
        "9" * 100_000,
        "NaN",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
    ):
        told = dict.fromkeys(("mos", "lora_adapter_metadata", "ss_tag_frequency", "adapter_config.json"), text)
        made[f"metadata {text[:9]!r}"] = save({"a": torch.ones(2, 2)}, told)
    return made


def raw(header: Any, payload: bytes = b"") -> bytes:
    """Return a safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def json_files(good: bytes) -> dict[str, bytes]:
    """Every value of a good JSON text replaced, and texts that parsers choke on."""
    made = {
        "deep lists": b"[" * 200_000, "deep objects": b'{"a":' * 100_000, "a long number": b"9" * 1_000_000,
        "a long exponent": b"1e999999999", "NaN": b"NaN", "a list": b"[]", "a text": b'"cat"', "null": b"null",
        "a key twice": good.rstrip()[:-1] + b', "a": 1, "a": 2}', "a BOM": b"\xef\xbb\xbf" + good,
        "100,000 keys": json.dumps({str(n): n for n in range(100_000)}).encode(),
    }  # fmt: skip
    try:
        fields = json.loads(good)
    except ValueError:
        return made
    values = (
        None,
        [],
        {},
        -1,
        10**9,
        2**70,
        1e308,
        "",
        "\0",
        "\u202e",
        "a" * 100_000,
        [[[]]],
        True,
        "../../x",
        "(a{1,999}){1,999}b",
    )
    for name in fields if isinstance(fields, dict) else ():
        for value in values:
            made[f"{name} is {str(value)[:18]!r}"] = json.dumps(fields | {name: value}).encode()
    return made


def configurations(good: bytes) -> dict[str, bytes]:
    """One value of another kind for each key, or one for all keys: reading a base takes long."""
    made = {name: data for name, data in json_files(good).items() if " is " not in name}
    fields = json.loads(good)
    values = (None, [], {}, -1, 0, 10**9, 2**70, 1e308, "", "../../x", "a" * 100_000, [[[]]], True, [2**40] * 4)
    for number, name in enumerate(fields):
        made[f"another {name}"] = json.dumps(fields | {name: values[number % len(values)]}).encode()
    for value in values:
        made[f"everything is {str(value)[:18]!r}"] = json.dumps(dict.fromkeys(fields, value)).encode()
    return made


def schedules(good: bytes) -> dict[str, bytes]:
    """Noise schedules and scales of other shapes and kinds of numbers than they have."""
    made = safetensors_files(good)
    shapes = ((), (0,), (2, 500), (1000, 1), (1,), (2_000_000,))
    for dtype in (torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8):
        for shape in shapes:
            for name in ("alphas_cumprod", "scale_factor"):
                made[f"{name} of {dtype} {shape}"] = save({name: torch.ones(shape, dtype=dtype)})
    for value in (float("nan"), float("inf"), -1.0, 0.0):
        made[f"a scale of {value}"] = save({"scale_factor": torch.tensor(value)})
    for key in ("modelspec.prediction_type", "modelspec.architecture"):
        for text in ("", "v/" * 50_000, "\0", "\u202e", "x" * 100_000):
            made[f"{key} of {text[:5]!r}"] = save({"v_pred": torch.zeros(0)}, {key: text})
    return made


def pictures(_good: bytes) -> dict[str, bytes]:
    """Pictures that are larger than they look, or lie about it."""
    made = {}
    for mode, side in (("1", 20_000), ("RGB", 12_000)):
        made[f"a {mode} picture of {side} x {side}"] = written(Image.new(mode, (side, side)), "PNG")
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    made["a PNG that claims 2**31 pixels a side"] = header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    small = written(Image.new("RGB", (4, 4)), "PNG")
    bomb = zlib.compress(b"\0" * 250_000_000, 9)
    for name, body in ((b"iCCP", b"x\0\0" + bomb), (b"zTXt", b"x\0\0" + bomb), (b"iTXt", b"x\0\1\0\0\0" + bomb)):
        made[f"a {name.decode()} of 250 MB"] = small[:33] + chunk(name, body) + small[33:]
    made["an SVG"] = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    made["PostScript"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    frames = [Image.new("L", (4, 4), n % 256) for n in range(2000)]
    held = io.BytesIO()
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    made["2,000 frames"] = held.getvalue()
    tiff = written(Image.new("L", (8, 8)), "TIFF")
    made["a TIFF whose directory is itself"] = tiff[:4] + struct.pack("<I", 4) + tiff[8:]
    return made


def written(picture: Image.Image, kind: str) -> bytes:
    """Return a picture as a file."""
    held = io.BytesIO()
    picture.save(held, kind)
    return held.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: str, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the function."""
        module, name = self.function.rsplit(".", 1)
        return getattr(__import__(module), name), (self.argument,)


def pickles(good: bytes) -> dict[str, bytes]:
    """Pickles that would call something, and zips that unfold."""
    made = {}
    for function in ("os.system", "builtins.eval", "builtins.exec", "subprocess.getoutput"):
        try:
            body = pickle.dumps({"a": Calls(function, "exit()")})
        except (ImportError, AttributeError, pickle.PicklingError):
            continue
        made[f"a call of {function}"] = zipped({"archive/data.pkl": body, "archive/version": b"3\n"})
        made[f"a bare call of {function}"] = body
    made["a zip of 250 MB of zeros"] = zipped({"archive/data.pkl": b"\0" * 250_000_000}, zipfile.ZIP_DEFLATED)
    made["a zip of 20,000 files"] = zipped({f"archive/data/{n}": b"" for n in range(20_000)})
    made["a zip that climbs"] = zipped({"../../x/data.pkl": pickle.dumps({})})
    made["a deep pickle"] = zipped({"archive/data.pkl": b"\x80\x02" + b"(" * 200_000 + b"."})
    made["memo bombs"] = zipped({"archive/data.pkl": b"\x80\x02]" + b"2" * 5000 + b"e" * 5000 + b"."})
    made["a huge number"] = zipped({"archive/data.pkl": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."})
    made["a directory twice"] = good + good[-22:]
    return made


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of files."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", how) as write:
        for name, body in files.items():
            write.writestr(name, body)
    return held.getvalue()


def tables(_good: bytes) -> dict[str, bytes]:
    """Tables of captions that name what is not theirs."""
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b.png",
        "",
        ".",
        "..",
        "C:\\x.png",
        "x" * 5000,
        "con",
        "\u202ex.png",
    )
    rows = {f"a picture called {name[:14]!r}": json.dumps({"file_name": name, "text": "V"}).encode() for name in names}
    return rows | {"100,000 rows": b"\n".join(b'{"file_name": "%d.png", "text": "V"}' % n for n in range(100_000))}


OF_KIND = {
    "concept": safetensors_files, "lora": safetensors_files, "embedding": safetensors_files, "kit": json_files,
    "manifest": json_files, "adapter_config": json_files, "picture": pictures, "pickled": pickles,
    "checkpoint": pickles, "caption_table": tables, "admission": safetensors_files,
    "concept_answer": hostile_wire.answers, "scores_answer": hostile_wire.answers,
    "scene": lambda good: hostile_texts.scenes(good) | json_files(hostile_texts.as_json(good)), "scene_json": json_files,
    "pushed_answer": hostile_wire.announcements, "pushed_object": hostile_wire.protobufs,
    "statements": hostile_wire.protobufs, "mos_call": hostile_wire.calls, "fleet_headers": hostile_wire.headers,
    "pins": json_files, "statement": json_files, "history": json_files, "bundle": json_files, "session": json_files,
    "fusion_settings": json_files,
    **dict.fromkeys(bases.MAKERS, configurations), "schedule_tensors": schedules, "authors_yaml": hostile_texts.yamls, "region": hostile_texts.regions,
}  # fmt: skip
