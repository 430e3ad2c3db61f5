"""One concept drawn before and after fusion: same words, same seeds, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_client.page.desk import Standing
from mos_client.page.work import Job
from mos_common.commands import command_line
from mos_common.errors import RequestError

PICTURES = 4


@dataclass(frozen=True)
class Side:
    """The drawings of one side: by the concept file, or by the newest model."""

    name: str
    title: str
    file: Path
    job: Job
    words: Sequence[str | Path]

    @property
    def command(self) -> str:
        """The command that it is."""
        return command_line("mos-client", *self.words)


def compared(standing: Standing) -> list[Side]:
    """Return both sides; empty without a concept file, or before the first model.

    The second is begun when the first is done: two at once may not fit one card.
    """
    if not standing.models or (concept := standing.concept_file) is None:
        return []
    model = standing.models[0]
    folder = standing.state / "page" / "compared" / model.name
    drawn = [
        ("before", "Before fusion", concept, standing.session.request.concept),
        ("after", f"After fusion, in {model.name}", model, standing.token),
    ]
    sides = list[Side]()
    for name, title, source, token in drawn:
        file = folder / f"{name}.png"
        words: list[str | Path] = ["draw", source, f"a photo of {token}", "--count", str(PICTURES), "--out", file]
        words += ["--base", standing.session.request.base]
        sides.append(Side(name, title, file, Job(standing.state, f"{name}-{model.name}"), words))
    before, after = sides
    if before.file.is_file() and not after.job.log.exists():
        after.job.start(after.words)
    return sides


def compare(standing: Standing) -> None:
    """Begin to draw both sides.

    Raises:
        RequestError: there is nothing to compare yet.

    """
    sides = compared(standing)
    if not sides:
        raise RequestError("there is nothing to compare yet: it takes the own concept and a model")
    missing = next((side for side in sides if not side.file.is_file()), None)
    if missing is not None:
        missing.job.start(missing.words)
