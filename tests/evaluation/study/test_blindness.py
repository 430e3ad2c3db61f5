"""What raters receive: readable by all, and silent about who drew what."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch

from evaluation.study.conftest import CONCEPTS, METHODS, assembly_of, study_of
from mos_bench.study.page import KEY
from mos_bench.study.trials import RIGHT, WRONG, read_key
from mos_common.errors import RequestError

VOID = {"meta", "link", "img"}
STYLE = (files("mos_bench.study") / "page.css").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, and whether all were closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(out) -> str:
    return (out / "page" / "index.html").read_text()


def test_no_name_of_a_method_and_no_catch_reaches_the_raters(study):
    out, key = study
    everything = page_of(out) + " ".join(str(path.relative_to(out)) for path in (out / "page").rglob("*"))
    secret = [
        *METHODS,
        *(f'"{word}"' for word in ("catch", WRONG, "methods")),
        *(trial.concept for trial in key.trials),
    ]
    assert not [word for word in secret if word in everything]
    assert not list((out / "page").rglob(KEY))
    assert '"trial"' in page_of(out)


def test_the_order_of_names_does_not_tell_the_method():
    """With 60 trials the first method is a coin: outside of 10 to 50 once in twenty million."""
    assembly = assembly_of(CONCEPTS * 20)
    first = [next(iter(trial.pictures.values())) for trial in assembly.trials]
    assert 10 <= first.count(METHODS[0]) <= 50
    assert [list(trial.pictures) for trial in assembly.trials] == [shown.pictures for shown in assembly.shown]
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in assembly.pictures)
    assert len({name for trial in assembly.trials for name in trial.pictures}) == 2 * 60


def test_a_catch_trial_shows_a_real_picture_and_one_of_another_kind_elsewhere():
    assembly = assembly_of()
    assembly.add_catches(CONCEPTS, 4)
    catches = [trial for trial in assembly.trials if trial.catch]
    assert [trial.concept for trial in catches] == ["<ann>", "<eve>", "<oak>", "<ann>"]
    for trial in catches:
        real = dict(assembly.real[trial.concept].others)
        names = {method: name for name, method in trial.pictures.items()}
        assert torch.equal(assembly.pictures[names[RIGHT]], real[trial.prompt])
        of_a_person = trial.concept != "<oak>"
        unlike = [assembly.real[c.name].others for c in CONCEPTS if c.person != of_a_person]
        elsewhere = [picture for others in unlike for caption, picture in others if caption != trial.prompt]
        assert any(torch.equal(assembly.pictures[names[WRONG]], picture) for picture in elsewhere)


def test_pictures_carry_nothing_but_pixels(study):
    for file in (study[0] / "page" / "pictures").glob("*.png"):
        data, at, kinds = file.read_bytes(), 8, set()
        while at < len(data):  # length, kind, content, checksum
            kinds.add(data[at + 4 : at + 8])
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        assert kinds == {b"IHDR", b"IDAT", b"IEND"}


def test_the_page_is_well_formed_asks_nobody_and_names_what_it_shows(study):
    page = page_of(study[0])
    assert "://" not in page
    assert "</script> the city" not in page  # a prompt cannot end the script
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements.found:
        assert not {"src", "onclick"} & set(attributes), tag
        assert attributes.get("href", "data:,") == "data:,"  # without an icon, browsers ask for one
        if tag == "img":
            assert attributes["alt"]
        if tag == "button":
            assert attributes["type"] == "button"
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
    asked = set(re.findall(r'element\("([\w-]+)"\)', page))
    assert asked <= set(ids)


def test_the_key_comes_back_and_a_second_study_does_not_replace_it(study):
    out, key = study
    assert read_key(out / KEY) == key
    assert (out / KEY).stat().st_mode & 0o077 == 0
    assert [trial.catch for trial in key.trials] == [False] * 3 + [True] * 2
    assert {*key.trials[-1].pictures.values()} == {RIGHT, WRONG}
    with pytest.raises(RequestError, match="give another --out"):
        study_of(out)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2: sRGB made linear, weighted by what the eye sees."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_level_aa_in_both_schemes(scheme):
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    for ink, paper in (("ink", "paper"), ("quiet", "paper"), ("on-accent", "accent"), ("accent", "paper")):
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
    assert "prefers-color-scheme: dark" in STYLE
    assert ":focus-visible { outline: 3px" in STYLE
