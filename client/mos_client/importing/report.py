"""The report of an import: the strength of the changes, the losses, a round's objections."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from mos_client.importing.lora import Adapter
from mos_common.base_model import Base
from mos_common.bounds import beyond_bounds, relative_change
from mos_common.concept import Concept
from mos_common.errors import ConceptError


def report_of(concept: Concept, adapter: Adapter, base: Base, *, rank: int | None, told: str) -> list[str]:
    """Return the lines about a concept as its file will be read again.

    `told` says where its trigger comes from.

    Raises:
        ConceptError: it changes nothing.

    """
    changes = {name: relative_change(base.layout.by_name[name], pair) for name, pair in concept.pairs.items()}
    if not concept.pairs and not concept.words:
        raise ConceptError(f"nothing is left of {concept.name}: it changes only convolutions larger than 1x1")
    if concept.words and not any(bool(words.any()) for words in concept.words):
        raise ConceptError(f"the words of {concept.name} are all zero: they were not trained, or not saved right")
    if not concept.words and not any(changes.values()):
        raise ConceptError(
            f"{concept.name} would change nothing: every change is zero (its alpha is 0, a factor of every layer is "
            "zero, or it is too small for half precision); it was not trained, or was not saved right"
        )
    return [*_changes(adapter, changes), *_losses(adapter, rank), *_called(concept, told), *_refused(concept, base)]


def _changes(adapter: Adapter, changes: dict[str, float]) -> Iterator[str]:
    if not changes:
        return
    strongest = max(changes, key=lambda name: changes[name])
    nothing = sum(not change for change in changes.values())
    without = f", {nothing} of them without effect" if nothing else ""
    yield (
        f"{' and '.join(adapter.kinds)} of {len(changes)} layers{without}; changes a layer by "
        f"{_of_norm(median(changes.values()))} in the median, by {_of_norm(changes[strongest])} at most ({strongest})"
    )


def _losses(adapter: Adapter, rank: int | None) -> Iterator[str]:
    total = sum(adapter.whole.values())
    if not total:
        return
    if out := sum(square for name, square in adapter.whole.items() if name not in adapter.pairs):
        layers = len(adapter.whole) - len(adapter.pairs)
        yield f"left out: {layers} convolutions larger than 1x1, {_percent(out / total)} of the whole change (of ‖ΔW‖²)"
    if rank is None:
        return
    shares = {
        name: adapter.kept[name] / whole for name, whole in adapter.whole.items() if name in adapter.pairs and whole
    }
    least = min(shares, key=lambda name: shares[name])
    kept = sum(adapter.kept.values()) / sum(adapter.whole[name] for name in adapter.pairs)
    yield (
        f"rank {rank} keeps at least {_percent(shares[least])} of every change (least: {least}), "
        f"{_percent(kept)} of all together; {_percent(max(0.0, 1 - kept))} is lost (of ‖ΔW‖²)"
    )


def _called(concept: Concept, told: str) -> Iterator[str]:
    if concept.words:
        yield f"prompts call it {concept.name}, by {concept.words[0].shape[1]} words of its own"
    elif concept.trigger:
        yield f"prompts call it {concept.name}, which stands for {concept.trigger!r}{f', {told}' if told else ''}"
    else:
        yield (
            f"prompts call it {concept.name}, which stands for its class word {concept.class_word!r}: if the LoRA "
            "needs "
            "words of its own, give them with --trigger"
        )


def _refused(concept: Concept, base: Base) -> Iterator[str]:
    if reasons := beyond_bounds(concept, base):
        more = f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        yield f"a round will not admit it as it is: {reasons[0]}{more}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def _of_norm(share: float) -> str:
    return f"{share:.3g} times its norm" if share >= 10 else f"{_percent(share)} of its norm"
