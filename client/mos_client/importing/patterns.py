"""Match the regular expressions of a stranger's configuration, in bounded time.

`re` has no time limit, and a pattern such as `(a+)+b` keeps it busy for ever; the library `regex`,
whose syntax holds `re`'s, has one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import regex

from mos_common.errors import ConceptError

LONGEST = 2000  # characters; PEFT's own patterns have a few hundred
PATIENCE_S = 1.0


@dataclass
class Patterns:
    """Matches patterns of one file; all its matches together take at most `PATIENCE_S` seconds."""

    left_s: float = PATIENCE_S

    def match(self, pattern: str, text: str) -> regex.Match[str] | None:
        """Return how a text matches from its beginning, or None.

        Raises:
            ConceptError: it is no regular expression, or matching takes too long.

        """
        shown = repr(pattern) if len(pattern) <= 80 else f"{pattern[:80]!r}…"
        if len(pattern) > LONGEST:
            raise ConceptError(f"the file's configuration has a pattern of {len(pattern):,} characters: {shown}")
        began = time.monotonic()
        try:
            return regex.match(pattern, text, timeout=max(self.left_s, 1e-3))
        except TimeoutError as error:
            raise ConceptError(
                f"the file's configuration has the pattern {shown}, which takes too long to match: "
                "have the file saved with a list of names instead"
            ) from error
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ConceptError(f"the file's configuration has {shown}, which is no regular expression") from error
        finally:
            self.left_s -= time.monotonic() - began
