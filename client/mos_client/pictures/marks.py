r"""Find the mark that stands for the concept in captions: `V`, `TOK`, or the concept's `<name>`.

`V` is an ordinary letter, so it counts only where it is a word of its own: not in "V-neck", "TV",
"V.I.P.", "12 V" or "Henry V". "V's hat" is the concept's hat. Other <tags> are text.

Inside the program every caption names the concept as `V`. Where that letter would be misread, a
caption says `<V>` for the concept and `\V` for the letter, as anybody's caption may.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mos_client.pictures.wording import few
from mos_common.errors import PicturesError, RequestError
from mos_common.names import check_concept_name

# Scripts written without spaces (Thai, kana, Chinese), and Korean with its particles.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
LETTER = rf"[^\W{UNSPACED}]"
HYPHEN, APOSTROPHE = "[-\u2010-\u2013\u2212]", "['\u2018\u2019`\u00b4]"
JOINED_BEFORE = re.compile(rf"(?:{LETTER}|{LETTER}{APOSTROPHE}|\b{LETTER}[.&]|(?<!{HYPHEN}){HYPHEN}|\\)\Z")
JOINED_AFTER = re.compile(rf"{LETTER}|{HYPHEN}(?!{HYPHEN})|{APOSTROPHE}(?![sS]\b){LETTER}|[.&]{LETTER}\b")
WORD_BEFORE = re.compile(rf"({LETTER}(?:[\w.'\u2019-]*\w)?)[ \t\u00a0]+\Z")
NUMBER = re.compile(r"[\d.]+")
# Words that begin sentences and are no names: "A V on a chair" is the concept, "Henry V" a king.
NO_NAMES = frozenset(
    {
        *("a", "an", "the", "this", "that", "one", "another", "some", "any", "each", "every"),
        *("my", "your", "his", "her", "its", "our", "their", "with", "and", "or", "of", "in", "on", "at", "by", "for"),
        *("from", "to", "as", "near", "behind", "beside", "under", "over"),
    }
)
V, EXPLICIT_V, LETTER_V, TOK = "V", "<V>", r"\V", "TOK"


@dataclass(frozen=True)
class Marks:
    """Which words of a caption stand for the concept.

    They are `V`, `TOK` (also `<V>`, `<TOK>`) and the name of the concept, if it is known; or `mark`
    alone, if it is given.

    Raises:
        RequestError: `concept` is no concept's name, or `mark` cannot stand in a caption.

    """

    concept: str | None = None
    mark: str | None = None

    def __post_init__(self) -> None:
        if self.concept is not None:
            check_concept_name(self.concept)
        if self.mark is not None and (
            self.mark != self.mark.strip() or not re.search(r"\w", self.mark) or "," in self.mark
        ):
            raise RequestError(
                f"--mark {self.mark!r}: give the word that stands for the concept in captions, such as sks"
            )

    @cached_property
    def _patterns(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        if self.mark is not None:
            given = re.escape(unicodedata.normalize("NFC", self.mark))
            return ((self.mark, re.compile(rf"<{given}>|{given}")),)
        own = () if self.concept is None else ((self.concept, re.compile(re.escape(self.concept), re.IGNORECASE)),)
        return (*own, (TOK, re.compile("(?i:<TOK>)|TOK")), (V, re.compile("<V>|V")))

    def places(self, line: str) -> list[tuple[int, int, str]]:
        """Return (start, end, mark) wherever a mark stands for the concept in a caption."""
        places: list[tuple[int, int, str]] = []
        for mark, pattern in self._patterns:
            for match in pattern.finditer(line):
                start, end = match.span()
                taken = any(start < other_end and other < end for other, other_end, _ in places)
                if not taken and _stands_alone(line, start, end):
                    places.append((start, end, mark))
        return sorted(places)

    def internal(self, line: str) -> str:
        r"""Return a caption with `V` for the concept, as `texts_around` reads it.

        If it does not name the concept, "V, " is put in front.
        """
        texts, done = [], 0
        for start, end, _ in self.places(line):
            texts.append(line[done:start])
            done = end
        texts.append(line[done:])
        if len(texts) == 1:
            texts = ["", f", {texts[0]}"]
        plain = V.join(texts)
        if texts_around(plain) == [text.replace(LETTER_V, V) for text in texts]:
            return plain
        return EXPLICIT_V.join(re.sub(r"(?<!\\)V", lambda _: LETTER_V, text) for text in texts)

    def check(self, captions: Mapping[str, Sequence[str]]) -> None:
        """Check that the captions of a folder, by the names of their files, use one mark.

        Raises:
            PicturesError: they use two, or not the one that was given.

        """
        used: dict[str, list[str]] = {}
        for name, lines in captions.items():
            for mark in dict.fromkeys(mark for line in lines for _, _, mark in self.places(line)):
                used.setdefault(mark, []).append(name)
        if self.mark is not None:
            self._check_given(captions, used)
        elif len(used) > 1:
            listed = ", ".join(f"{mark} in {few(names)}" for mark, names in used.items())
            raise PicturesError(
                f"the captions name the concept in {len(used)} ways ({listed}): use one of them, or "
                "say which with --mark"
            )

    def _check_given(self, captions: Mapping[str, Sequence[str]], used: Mapping[str, Sequence[str]]) -> None:
        if not used:
            raise PicturesError(
                f"--mark {self.mark}: none of the {len(captions)} captioned pictures has this word in its caption"
            )
        if self.concept is None or self.concept.casefold() == str(self.mark).casefold():
            return
        own = [name for name, lines in captions.items() if any(self.concept in line.casefold() for line in lines)]
        if own:
            raise PicturesError(
                f"the captions name the concept in 2 ways ({self.mark}, given with --mark, and {self.concept} "
                f"in {few(own)}): write {self.mark} there too"
            )


ANY_MARK = Marks()


def texts_around(caption: str) -> list[str]:
    r"""Return the texts between the places of the concept in a caption that names it as `V`.

    `texts_around("V in a V-neck")` is `["", " in a V-neck"]`.
    """
    texts, done = [], 0
    for start, end, _ in Marks(mark=V).places(caption):
        texts.append(caption[done:start])
        done = end
    return [text.replace(LETTER_V, V) for text in (*texts, caption[done:])]


def _stands_alone(line: str, start: int, end: int) -> bool:
    """Return True if a mark is a word of its own. A mark in <> always is."""
    before, mark, after = line[:start], line[start:end], line[end:]
    if re.match(LETTER, mark) and JOINED_BEFORE.search(before):
        return False
    if re.match(LETTER, mark[-1]) and JOINED_AFTER.match(after):
        return False
    word = WORD_BEFORE.search(before)
    if len(mark) > 1 or word is None:
        return True
    # A single letter after a name or a number is its numeral or its unit.
    return not NUMBER.fullmatch(word[1]) and (not word[1][0].isupper() or word[1].casefold() in NO_NAMES)
