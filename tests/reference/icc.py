"""Write small ICC profiles, and convert colours by the formulas that they stand for."""

from __future__ import annotations

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# XYZ of red, green and blue in columns, adapted to D50.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])


def linear(encoded: np.ndarray) -> np.ndarray:
    """The curve of sRGB and Display P3, from 0..1 to light."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    """The inverse of `linear`."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_srgb(colour: tuple[int, int, int], matrix: np.ndarray, gamma: float | None = None) -> tuple[int, ...]:
    """The colour in sRGB, by the matrices; `gamma` None is sRGB's own curve."""
    share = np.array(colour) / 255
    light = linear(share) if gamma is None else share**gamma
    return tuple(int(x) for x in np.rint(encoded(np.linalg.solve(SRGB, matrix @ light)) * 255))


def rgb_profile(name: str, matrix: np.ndarray, gamma: float | None = None) -> bytes:
    curve = _curve(gamma)
    columns = {f"{c}XYZ".encode(): _xyz(matrix[:, i]) for i, c in enumerate("rgb")}
    return _profile(b"RGB ", b"XYZ ", b"mntr", name, columns | {f"{c}TRC".encode(): curve for c in "rgb"})


def grey_profile(name: str, gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", b"mntr", name, {b"kTRC": _curve(gamma)})


def cmyk_profile(name: str) -> bytes:
    """White paper, black as black, and every coloured ink the same grey of L* = 50."""
    identity = bytes(range(256))
    corners = []
    for corner in range(16):
        black = corner & 1
        lightness = 0 if black else 128 if corner else 255
        corners += [lightness, 128, 128]
    ones = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + b"".join(_fixed(x) for x in ones)
    return _profile(b"CMYK", b"Lab ", b"prtr", name, {b"A2B0": lut + identity * 4 + bytes(corners) + identity * 3})


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    table = np.rint(linear(np.linspace(0, 1, 1024)) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + table


def _fixed(x: float) -> bytes:
    return struct.pack(">i", round(x * 65536))


def _xyz(values: object) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _profile(space: bytes, pcs: bytes, kind: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(D50)} | tags
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for signature, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += signature + struct.pack(">II", start + len(data), len(content))
        data += padded
    header = bytes(4) + struct.pack(">I", 0x02100000) + kind + space + pcs + bytes(12) + b"acsp" + bytes(28)
    header += b"".join(map(_fixed, D50)) + bytes(48)
    size = struct.pack(">I", 128 + 4 + len(table) + len(data))
    return size + bytes(4) + header[4:128] + struct.pack(">I", len(tags)) + table + data
