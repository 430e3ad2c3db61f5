r"""The grammar of prompts that are drawn: weights, and words that change on the way.

    prompt    = { weighted | lighter | changing | atom } ;
    weighted  = "(" prompt [ ":" weight ] ")" ;              (cat:1.3), and (cat) for 1.1
    lighter   = "[" prompt "]" ;                             [cat] for 1/1.1
    changing  = "[" [ prompt ":" ] prompt ":" when "]" ;     [dog:cat:0.5], [cat:0.5], [dog::0.5]
    weight    = a number from 0 to 10 ;
    when      = a share of the steps with a point, 0.0 to 1.0, or the number of a step ;
    atom      = "<" name ">" | "\" escaped | any other character ;
    escaped   = "(" | ")" | "[" | "]" | ":" | "|" | "\" ;

Brackets nest, and weights within weights multiply. `[dog:cat:0.5]` says dog for the first half of
the steps and cat afterwards; with 8, dog for the first eight steps. What looks like the grammar
and is not, such as a lone bracket or a weight of 30, is read as plain text, and noted.

The meaning is that of Automatic1111's web UI; its `[a|b]`, `BREAK` and `AND`, and compel's
`cat++`, are not in it. Captions are texts and are never read by this grammar: it is for drawing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

from mos_common.errors import RequestError

STRONGER = 1.1
HEAVIEST = 10.0
MOST_CHARACTERS, DEEPEST = 10_000, 16
_PIECES = re.compile(r"<[^<>()\[\]\\\n]+>|\\[()\[\]:|\\]|[()\[\]:|]|[^()\[\]:|\\<]+|.", re.DOTALL)
_WEIGHT = re.compile(r"\s*(\d{1,3}(?:\.\d{0,6})?|\.\d{1,6})\s*")
_WHEN = re.compile(r"\s*(?P<share>\d?\.\d{1,6}|\d\.)\s*|\s*(?P<step>\d{1,4})\s*")
_FOREIGN = re.compile(r"\b(?:BREAK|AND)\b|\b\w+(?:\++|--+)(?!\w)")
_PAIRS = {")": "(", "]": "["}


@dataclass(frozen=True)
class Weighted:
    """A part of a prompt that counts more (above 1) or less (below 1)."""

    content: tuple[Node, ...]
    weight: float


@dataclass(frozen=True)
class Changing:
    """A part that says one thing in the first steps and another afterwards.

    `when` is a share of the steps if it is a fraction, otherwise a number of steps.
    """

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: Fraction | int

    def begins(self, steps: int, evaluations: int) -> int:
        """Return the evaluation of the UNet, from 0, at which `after` begins.

        Some samplers evaluate the UNet twice in a step.
        """
        return floor((self.when if isinstance(self.when, Fraction) else Fraction(self.when, steps)) * evaluations)


Node = str | Weighted | Changing


@dataclass(frozen=True)
class Part:
    """A text and its weight. Neighbours of one weight are one part."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class WrittenPrompt:
    """A prompt as it was understood; `remarks` say what was not, and is read as text."""

    content: tuple[Node, ...]
    remarks: tuple[str, ...] = ()

    def changes(self, steps: int, evaluations: int) -> set[int]:
        """Return the evaluations of the UNet at which the prompt says something else."""
        begun = {each.begins(steps, evaluations) for each in _changing(self.content)}
        return {index for index in begun if 0 < index < evaluations}

    def texts(self) -> list[str]:
        """Return every text of the prompt, at whichever step it is said."""
        return list(_texts(self.content))

    def parts(self, index: int, steps: int, evaluations: int) -> tuple[Part, ...]:
        """Return what the prompt says at one evaluation of the UNet, from 0."""
        said = list[Part]()
        for text, weight in _said(self.content, 1.0, index, steps, evaluations):
            if said and said[-1].weight == weight:
                said[-1] = Part(said[-1].text + text, weight)
            else:
                said.append(Part(text, weight))
        return tuple(said)


@dataclass
class _Open:
    """A bracket that is not closed yet, and its content, split at its own colons."""

    bracket: str
    start: int
    alternates: bool = False
    parts: list[list[Node]] = field(default_factory=lambda: [[]])

    def joined(self, last: int | None = None) -> tuple[Node, ...]:
        """Return the parts up to `last` as one, with their colons."""
        content = list[Node]()
        for number, part in enumerate(self.parts[:last]):
            content += [":", *part] if number else part
        return tuple(content)


def parse_prompt(prompt: str) -> WrittenPrompt:
    """Parse a prompt that is to be drawn.

    Raises:
        RequestError: it is longer than any prompt.

    """
    if len(prompt) > MOST_CHARACTERS:
        raise RequestError(f"a prompt of {len(prompt):,} characters: at most {MOST_CHARACTERS:,} are read; shorten it")
    remarks = [f"{found[0]!r}" for found in _FOREIGN.finditer(prompt)]
    stack = [_Open("", 0)]
    for piece in _PIECES.finditer(prompt):
        text, inner = piece[0], stack[-1]
        if text in _PAIRS.values() and len(stack) <= DEEPEST:
            stack.append(_Open(text, piece.start()))
        elif text in _PAIRS and inner.bracket == _PAIRS[text]:
            stack.pop()
            written = prompt[inner.start : piece.end()]
            stack[-1].parts[-1] += _closed(inner, written, remarks)
        elif text == ":" and inner.bracket:
            inner.parts.append([])
        else:
            if text in "()[]":
                remarks.append(f"a lone {text!r}")
            inner.alternates |= text == "|"
            inner.parts[-1].append(text[1:] if text[0] == "\\" and len(text) > 1 else text)
    while len(stack) > 1:
        unclosed = stack.pop()
        remarks.append(f"a lone {unclosed.bracket!r}")
        stack[-1].parts[-1] += [unclosed.bracket, *unclosed.joined()]
    return WrittenPrompt(stack[0].joined(), tuple(dict.fromkeys(remarks)))


def as_text(text: str) -> str:
    """Return a text as a prompt writes it, so that nothing in it is grammar."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def _closed(inner: _Open, written: str, remarks: list[str]) -> tuple[Node, ...]:
    """Return what a pair of brackets means, or its text if it means nothing."""
    last, count = _plain(inner.parts[-1]), len(inner.parts)
    if inner.bracket == "(":
        weight = _WEIGHT.fullmatch(last) if count > 1 else None
        if weight and float(weight[1]) <= HEAVIEST:
            return (Weighted(inner.joined(-1), float(weight[1])),)
        if not weight:
            return (Weighted(inner.joined(), STRONGER),)
    elif not inner.alternates:
        if count == 1:
            return (Weighted(inner.joined(), 1 / STRONGER),)
        when = _when(last)
        if when is not None and count <= 3:
            before = tuple(inner.parts[0]) if count == 3 else ()
            return (Changing(before, tuple(inner.parts[-2]), when),)
    remarks.append(f"{written if len(written) <= 60 else written[:59] + '…'!r}")
    return (inner.bracket, *inner.joined(), ")" if inner.bracket == "(" else "]")


def _plain(part: Sequence[Node]) -> str:
    """Return a part that is text alone, else an empty text."""
    texts = [each for each in part if isinstance(each, str)]
    return "".join(texts) if len(texts) == len(part) else ""


def _when(text: str) -> Fraction | int | None:
    found = _WHEN.fullmatch(text)
    if not found:
        return None
    if found["step"]:
        return int(found["step"])
    share = Fraction(found["share"])
    return share if share <= 1 else None


def _changing(content: Sequence[Node]) -> Iterator[Changing]:
    for each in content:
        if isinstance(each, Changing):
            yield each
            yield from _changing((*each.before, *each.after))
        elif isinstance(each, Weighted):
            yield from _changing(each.content)


def _texts(content: Sequence[Node]) -> Iterator[str]:
    for each in content:
        if isinstance(each, str):
            yield each
        else:
            yield from _texts((*each.before, *each.after) if isinstance(each, Changing) else each.content)


def _said(
    content: Sequence[Node], weight: float, index: int, steps: int, evaluations: int
) -> Iterator[tuple[str, float]]:
    for each in content:
        if isinstance(each, str):
            yield each, weight
        elif isinstance(each, Weighted):
            inner = round(weight * each.weight, 6)  # so that ([a]) is a
            yield from _said(each.content, inner, index, steps, evaluations)
        else:
            begun = index >= each.begins(steps, evaluations)
            yield from _said(each.after if begun else each.before, weight, index, steps, evaluations)
