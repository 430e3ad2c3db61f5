"""The folder that raters receive: one page, its pictures, and nothing that says what they are.

The page asks for nothing but its own pictures, so it works from a file, a memory stick or any web
server. Each rater's browser draws a name at random, and from it an own order of the trials and own
sides; it keeps the answers, and gives them out as a file at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_bench.study.trials import Key
from mos_common.errors import RequestError
from mos_common.files import replacing_folder, write_atomically
from mos_common.pictures import as_image

PAGE, KEY = "page", "key.json"


@dataclass(frozen=True)
class Shown:
    """What the page shows in one trial: names of pictures, in an order that means nothing."""

    trial: str
    text: str
    subject: str
    references: Sequence[str]
    pictures: Sequence[str]


def check_new(out: Path) -> None:
    """Check that a study may be written to `out`.

    Raises:
        RequestError: one is there, whose answers could no longer be tallied without its key.

    """
    if (out / KEY).exists() or (out / PAGE).exists():
        raise RequestError(f"{out} holds a study, and its answers need its key: give another --out, or move it away")


def write_study(out: Path, key: Key, shown: Sequence[Shown], pictures: Mapping[str, Float[Tensor, "3 h w"]]) -> None:
    """Write `out`/page for raters, and `out`/key.json, which is not for them.

    Pictures are sorted by their random names, so that not even the times of files tell anything.
    """
    check_new(out)
    write_atomically(out / KEY, key.json(), mode=0o600)
    with replacing_folder(out / PAGE) as folder:
        (folder / "pictures").mkdir()
        for name in sorted(pictures):
            image: Image.Image = as_image(pictures[name])
            image.save(folder / "pictures" / f"{name}.png", optimize=True)
        (folder / "index.html").write_text(page_of(key.study, shown), encoding="utf-8")


def page_of(study: str, shown: Sequence[Shown]) -> str:
    """Return the page, with its style, its script and its trials inside."""
    of_trials = [asdict(each) for each in sorted(shown, key=lambda each: each.trial)]
    content = json.dumps({"study": study, "trials": of_trials}, ensure_ascii=False).replace("<", r"\u003c")
    page = _part("page.html")
    for mark, text in (("STYLE", _part("page.css")), ("SCRIPT", _part("page.js")), ("STUDY", content)):
        before, after = page.split(f">{mark}<")
        page = f"{before}>{text}<{after}"
    return page


def _part(name: str) -> str:
    return (files("mos_bench.study") / name).read_text(encoding="utf-8")
