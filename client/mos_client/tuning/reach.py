"""Count the tokens of captions, and check that the base reads as far as the concept's name."""

from __future__ import annotations

from mos_client.pictures.captions import shuffled_caption
from mos_client.pictures.marks import texts_around
from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import Base


class Reach:
    """Counts the tokens of captions in which the concept is `words` tokens long."""

    def __init__(self, base: Base, words: int) -> None:
        self._base, self._words = base, words
        self._counted: dict[str, tuple[int, int]] = {}

    @property
    def most(self) -> int:
        """Tokens of one caption that the base reads, without those that start and end it."""
        return self._base.text_length - 2

    def count(self, caption: str) -> tuple[int, int]:
        """Return (tokens of a caption, those up to the end of the concept's last naming)."""
        if caption not in self._counted:
            *named, rest = (len(self._ids(part)) for part in texts_around(caption))
            through = sum(named) + self._words * len(named)
            self._counted[caption] = (through + rest, through)
        return self._counted[caption]

    def holds(self, caption: str) -> bool:
        """Return whether the concept is named within what the base reads."""
        return self.count(caption)[1] <= self.most

    def shuffled(self, caption: str, order: list[int]) -> str:
        """Return the caption with the parts after its first in another order.

        The concept stays within reach: if `order` carries it out, the parts that name it come
        first, and if even they do not fit, the caption is left as it was written.
        """
        shuffled = shuffled_caption(caption, order)
        if self.holds(shuffled):
            return shuffled
        named = [len(texts_around(part)) > 1 for part in caption.split(",")[1:]]
        brought_forward = shuffled_caption(caption, sorted(order, key=lambda part: not named[part]))
        return brought_forward if self.holds(brought_forward) else caption

    def _ids(self, text: str) -> list[int]:
        return list(self._base.tokenizer(text, add_special_tokens=False).input_ids) if text.strip() else []


def words_in_caption(base: Base, class_word: str, settings: TuningSettings) -> int:
    """Return the tokens that stand for the concept: its words, or its class word without any."""
    return settings.word_count or len(base.tokenizer(class_word, add_special_tokens=False).input_ids)
