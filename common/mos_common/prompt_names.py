"""The names in a prompt: which `<...>` is a concept, which is text, and which is a mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from mos_common.errors import RequestError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from mos_common.base_model import Base

TAG = re.compile(r"<[^<>\n]+>")
NAME = re.compile(r"<[\w/:.-]+>")
OPENING, CLOSING = r"(?:<|‹|«|〈|《|＜|&lt;)", r"(?:>|›|»|〉|》|＞|&gt;)"
# How other tools load a file in a prompt: <lora:style:0.8>.
FILE_TAG = re.compile(r"<(?:lora|lyco|lycoris|hypernet|embedding):([^:<>]*)[^<>]*>", re.IGNORECASE)
WEIGHT = re.compile(r":([\d.]+)>$")


def split_at_concepts(base: Base, prompt: str, vocabulary: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the texts between the concepts that a prompt names, and these as vocabulary tokens."""
    texts, tokens, position = list[str](), list[str](), 0
    for match in TAG.finditer(prompt):
        if match[0] in vocabulary or not _is_text(base, match[0], vocabulary):
            tokens.append(resolve(match[0], vocabulary, own_words(base.tokenizer)))
            texts.append(prompt[position : match.start()])
            position = match.end()
    if vocabulary:
        _refuse_broken_tags(TAG.sub(" ", prompt), vocabulary)
    return [*texts, prompt[position:]], tokens


def _is_text(base: Base, tag: str, vocabulary: Collection[str]) -> bool:
    """Return whether a tag names no concept: it was taught to the base, or is like `a < b > c`."""
    if tag in own_words(base.tokenizer):
        return True
    return not (NAME.fullmatch(tag) or FILE_TAG.fullmatch(tag)) and _nearest(tag, sorted(vocabulary)) is None


def _refuse_broken_tags(text: str, vocabulary: Collection[str]) -> None:
    """Refuse a concept's name in half a tag or in other brackets: `<cat on a chair`, `‹cat›`."""
    for token in vocabulary:
        names = "|".join({re.escape(token[1:-1]), re.escape(token[1:-1].rpartition("/")[2])})
        name = rf"\s*(?:{names})(?![\w/-])\s*"
        broken = re.search(rf"(?:{OPENING}{name}(?:{CLOSING})?|(?<![\w/-]){name}{CLOSING})", text, re.IGNORECASE)
        if broken:
            raise RequestError(f"{broken[0].strip()!r} is no concept: did you mean {token}?")


def resolve(token: str, vocabulary: Collection[str], also: Iterable[str] = ()) -> str:
    """Return the vocabulary's own token for one in a prompt.

    `<alice/cat>` always works, `<cat>` if only one participant has it. `also` are words of the base
    that may have been meant.

    Raises:
        RequestError: no concept has that name, or several have; the message lists them, and the
            nearest one first.

    """
    if token in vocabulary:
        return token
    candidates = [known for known in vocabulary if known.endswith(f"/{token[1:]}")]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise RequestError(f"{token} could be any of {', '.join(sorted(candidates))}: write the one you mean")
    known = sorted(vocabulary)
    nearest = _nearest(FILE_TAG.sub(r"<\1>", token), [*known, *sorted(word for word in also if TAG.fullmatch(word))])
    hint = f" (did you mean {nearest}?)" if nearest else ""
    raise RequestError(
        f"unknown concept {token}{hint}; known: {', '.join(known) or 'none'}{_advice(token, nearest, known)}"
    )


def _advice(token: str, nearest: str | None, known: Sequence[str]) -> str:
    """Return what to write in place of what other tools would understand."""
    weight = WEIGHT.search(token)
    if FILE_TAG.fullmatch(token):
        name = nearest or (known[0] if known else "<cat>")
        example = f"({name}:{weight[1]})" if weight else name
        return (
            f". No file is loaded by a prompt here: a concept of the model is named, such as {example}; "
            "`mos-client import` makes a concept of a LoRA"
        )
    return f". A weight is written ({nearest}:{weight[1]})" if weight and nearest else ""


def _nearest(token: str, known: Sequence[str]) -> str | None:
    """Return the token most like one in a prompt, whatever its case, spaces and weight."""
    plain = re.sub(r"[\s<>]|:[\d.]*(?=>)", "", token).lower()
    spellings = {text: each for each in known for text in (each[1:-1].rpartition("/")[2], each[1:-1])}
    near = difflib.get_close_matches(plain, spellings, n=1, cutoff=0.6)
    return spellings[near[0]] if near else None


def own_words(tokenizer: CLIPTokenizer) -> set[str]:
    """Return the words that the base itself was taught, such as `<sks>` of a DreamBooth model."""
    return set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
