"""What a picture's file says of the picture, in PNG, JPEG and WebP, and reading it again.

- PNG `parameters`, EXIF UserComment elsewhere: the text of Automatic1111's web UI. ComfyUI reads it
  from a PNG that has no graph of its own; we have no graph and write none.
- PNG `mos-recipe`: our recipe as JSON.
- XMP: our recipe, and IPTC's DigitalSourceType, which says that a trained model made the picture.

A picture that is read is a stranger's: sizes are bounded, and XML with a DTD is refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from mos_common.errors import PicturesError, RequestError
from mos_common.pictures import FORMATS
from mos_common.recipes import MOST_BYTES, SOFTWARE, Recipe, as_parameters, recipe_from_json, recipe_to_json
from mos_common.texts import visible

MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
KEY, PARAMETERS, PNG_XMP = "mos-recipe", "parameters", "XML:com.adobe.xmp"
OURS = "urn:federated-mix-of-show:recipe:1:"
UNICODE = b"UNICODE\0"
MOST_JPEG_BYTES = 60_000  # one segment of a JPEG holds 65,533
MOST_FILE_BYTES, MOST_PIXELS = 256 << 20, 16_000_000
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:mos="{ours}"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<xmp:CreatorTool>{software}</xmp:CreatorTool>
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>{recipe}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, Image.DecompressionBombError)


def metadata(kind: str, recipe: Recipe | None) -> dict[str, Any]:
    """Return the options with which Pillow writes a picture of a format (its name for it).

    Without a recipe, as for a preview, the file says only that a model made it.

    Raises:
        RequestError: the format does not hold so long a recipe.

    """
    xmp = _xmp(recipe)
    if kind == "PNG":
        info = PngInfo()
        if recipe:
            info.add_text(PARAMETERS, as_parameters(recipe))
            info.add_text(KEY, recipe_to_json(recipe))
        info.add_itxt(PNG_XMP, xmp)
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    if recipe:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE + as_parameters(recipe).encode("utf-16-be")
    told = {"exif": exif.tobytes(), "xmp": xmp.encode()}
    if kind == "JPEG" and (longest := max(map(len, told.values()))) > MOST_JPEG_BYTES:
        raise RequestError(
            f"prompts and masks make a recipe of {longest:,} bytes, and a JPEG holds {MOST_JPEG_BYTES:,}: give --out a .png "
            "or a .webp"
        )
    return told


def read_recipe(file: Path) -> Recipe:
    """Read the recipe of a picture.

    Raises:
        PicturesError: the file is no picture of ours, or its recipe is damaged; the message names
            it.

    """
    try:
        if file.stat().st_size > MOST_FILE_BYTES:
            raise PicturesError(f"{file} is larger than {MOST_FILE_BYTES >> 20} MB: it is no picture of ours")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that Pillow finds odd
            with Image.open(file, formats=sorted(set(FORMATS.values()))) as picture:
                told = _own_text(picture.info) or _in_xmp(picture.info)
    except _DAMAGED as error:
        raise PicturesError(f"{file} cannot be read as a PNG, JPEG or WebP: {_short(error)}") from error
    if told is None:
        raise PicturesError(
            f"{file} has no recipe: it was not drawn by `mos-client draw`, or a program has taken the recipe out"
        )
    return recipe_from_json(told, str(file))


def read_pixels(file: Path) -> Image.Image:
    """Read the pixels of a picture as RGB.

    Raises:
        PicturesError: they cannot be read, or are more than any drawing has.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=sorted(set(FORMATS.values()))) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise PicturesError(f"{file} has {picture.width} x {picture.height} pixels: more than are compared")
                return picture.convert("RGB")
    except _DAMAGED as error:
        raise PicturesError(f"{file} cannot be read as a PNG, JPEG or WebP: {_short(error)}") from error


def _xmp(recipe: Recipe | None) -> str:
    told = f"\n<mos:recipe>{escape(recipe_to_json(recipe))}</mos:recipe>" if recipe else ""
    return _XMP.format(ours=OURS, software=escape(SOFTWARE), source=MADE_BY_A_MODEL, recipe=told)


def _own_text(info: dict[str | tuple[int, int], Any]) -> str | None:
    told = info.get(KEY)
    return str(told) if told else None


def _in_xmp(info: dict[str | tuple[int, int], Any]) -> str | None:
    """Return our property of a picture's XMP, as an element or an attribute."""
    packet = info.get("xmp") or info.get(PNG_XMP) or b""
    data = packet.encode() if isinstance(packet, str) else bytes(packet)
    if not data or len(data) > 2 * MOST_BYTES or b"<!" in data:
        return None
    try:
        root = ElementTree.fromstring(data.strip(b"\0 \n\r\t"))  # noqa: S314 no DTD, so no entities
    except ElementTree.ParseError:
        return None
    for each in root.iter():
        if each.tag == f"{{{OURS}}}recipe" and each.text:
            return each.text
        if told := each.attrib.get(f"{{{OURS}}}recipe"):
            return told
    return None


def _short(error: BaseException) -> str:
    return visible(str(error)).splitlines()[0][:200] if str(error) else type(error).__name__
