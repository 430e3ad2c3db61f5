"""Name the kind of a file that holds no tensors by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping

# How files begin that hold no tensors that we read.
BEGINNINGS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"GGUF": "is a GGUF file of quantised weights, which cannot be read: get it as safetensors",
    b"\x89PNG": "is a picture, not a file of weights",
    b"\xff\xd8\xff": "is a picture, not a file of weights",
    b"RIFF": "is a picture or a sound, not a file of weights",
    b"\x80": "is a pickle of an old torch.save: save it again, or convert it to safetensors",
    b"%PDF": "is a PDF, not a file of weights",
    b"\x89HDF": "is an HDF5 file, as Keras writes it: get it as safetensors",
    b"\x93NUMPY": "is a NumPy array: get it as safetensors",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"\x1f\x8b": "is a gzip archive: unpack it first",
}
HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)", re.I | re.S)
JSON = re.compile(rb"\s*[{\[]")


def kind_of_bytes(start: bytes) -> str | None:
    """Return what a file is that starts like this, as the end of a sentence; None if unknown."""
    if not start:
        return "is empty: download it again"
    if HTML.match(start):
        return (
            "is a web page, not a file of weights: download the file itself (sites that ask you to log in send a page)"
        )
    if found := next((kind for magic, kind in BEGINNINGS.items() if start.startswith(magic)), None):
        return found
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if JSON.match(start):
        return "is a JSON file, not a file of weights: give the file of weights beside it"
    return None
