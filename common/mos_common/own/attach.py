"""Draw with a fused model and own changes: text, keys and values fused, spatial layers own.

with attached_with_own(base, fused.changes, own) as changes:
    draw(base, prompts, seeds, vocabulary=fused.vocabulary, own=changes)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mos_common.base_model import Base
from mos_common.edlora import MergedWeights, attached
from mos_common.layers import Group
from mos_common.own.cellwise import CellShares, Changes, Columns, cellwise
from mos_common.own.places import WATCHED_STEPS, Names, WordPlaces, prompt_shares, word_places
from mos_common.regions import Region, RegionShares
from mos_common.shapes import feature_maps
from mos_common.words import Vocabulary
from mos_common.written_prompts import Phase


@dataclass(frozen=True)
class Kept:
    """Weights kept between drawings: the model's, and those of the own change drawn last."""

    fused: MergedWeights = field(default_factory=MergedWeights)
    own: MergedWeights = field(default_factory=MergedWeights)


@dataclass(frozen=True)
class OwnChanges:
    """The own spatial changes of some concepts, by token, while a fused model is attached.

    `fused` are the fused changes, `weights` the base's own weights of the spatial layers.
    """

    base: Base
    fused: Changes
    own: Mapping[str, Changes]
    weights: Mapping[str, Tensor]
    kept: MergedWeights

    @contextmanager
    def placed(
        self,
        prompts: Sequence[str],
        regions: Sequence[Region],
        vocabulary: Vocabulary,
        phases: Sequence[Phase],
        steps: int,
    ) -> Iterator[Placed]:
        """Let own changes act where their concepts are, in the drawing within the block.

        `phases` are what `prompts` and `regions` were read into for so many steps.

        Raises:
            RequestError: a prompt names an unknown concept.

        """
        names = Names.of(self.base, prompts, regions, vocabulary)
        alone = names.everywhere
        if alone is not None and alone in self.own:
            with self._everywhere(self.own[alone]):
                yield Placed()
            return
        slots = names.slots(self.own)
        if not slots:
            yield Placed()
            return
        mine = [self.own[token] for token in slots]
        shares = RegionShares(regions, phases[0].conditioning.size, self.base.device)
        placed = Placed(names, slots, shares, phases, Columns.of(mine))
        if names.several:
            placed.watched = word_places(self.base, prompts, vocabulary, phases, steps)
        with cellwise(self.base, self.weights, mine, self.fused, placed.cells):
            yield placed

    @contextmanager
    def _everywhere(self, own: Changes) -> Iterator[None]:
        """Exchange the fused weights of the spatial layers for those of one concept's model."""
        layers = {name: self.base.layout.by_name[name].module for name in self.weights}
        fused = {name: module.weight for name, module in layers.items()}
        try:
            for name, module in layers.items():
                module.weight = self.weights[name]
            with attached(self.base, own, self.kept):
                yield
        finally:
            for name, module in layers.items():
                module.weight = fused[name]


class Placed:
    """Where own changes act in one drawing; `denoise` says when a step has ended."""

    def __init__(
        self,
        names: Names | None = None,
        slots: Sequence[str] = (),
        regions: RegionShares | None = None,
        phases: Sequence[Phase] = (),
        columns: Columns | None = None,
    ) -> None:
        self.watched: WordPlaces | None = None
        self.cells = CellShares(self._shares, columns or Columns.of(()))
        self._names, self._slots, self._regions = names, slots, regions
        self._conditioning = phases[0].conditioning if phases else None
        # Words are watched where the first phase has them.
        self._first_ends = phases[1].begins if len(phases) > 1 else None
        self._progress = 0.0
        self._by_word: Float[Tensor, "prompts slots height width"] | None = None

    def end_step(self, done: int, steps: int) -> None:
        """Say that so many of the steps are done: words are placed, or other regions hold now."""
        before, self._progress = self._progress, done / steps
        watched_steps = max(1, round(WATCHED_STEPS * steps))
        if self.watched is not None and done == min(watched_steps, self._first_ends or watched_steps):
            self._by_word = self.watched.fixed(self._slots)
            self.cells.changed()
        if self._regions is not None and self._regions.active(before) != self._regions.active(self._progress):
            self.cells.changed()

    def _shares(self, cells: int) -> Float[Tensor, "batch slots cells"]:
        """Return the shares in a feature map: alike for a prompt and its unconditional row.

        This is the one place where own changes ask the regions for theirs.
        """
        names, regions, conditioning = self._names, self._regions, self._conditioning
        assert names is not None and regions is not None and conditioning is not None, "nobody has a place"
        of_region = regions.at(self._progress, cells).cpu()
        found = prompt_shares(names, self._slots, regions.active(self._progress), of_region)
        if self._by_word is not None:
            size = feature_maps(*conditioning.size)[cells]
            found = found + adaptive_avg_pool2d(self._by_word, size).flatten(2)
        return found.repeat(2 if conditioning.unconditional_rows else 1, 1, 1).to(conditioning.features.device)


@contextmanager
def attached_with_own(
    base: Base, fused: Changes, own: Mapping[str, Changes], kept: Kept | None = None
) -> Iterator[OwnChanges]:
    """Attach a fused model's changes, as `attached` does, with own changes to draw with beside.

    Only the spatial changes of `own` are used. `kept` is what earlier drawings have computed.

    Raises:
        ConceptError: a change names a layer that the base does not have.

    """
    spatial = {layer.name: layer for layer in base.layout.by_group[Group.SPATIAL]}
    weights = {name: layer.module.weight for name, layer in spatial.items()}
    mine = {token: {name: pair for name, pair in of.items() if name in spatial} for token, of in own.items()}
    kept = kept or Kept()
    with attached(base, fused, kept.fused):
        yield OwnChanges(base, {name: pair for name, pair in fused.items() if name in spatial}, mine, weights, kept.own)
