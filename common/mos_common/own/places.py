"""Where each concept's own change holds in a picture.

A cell is drawn by the own change of the one concept that its prompt names: in a region the region's
prompt, elsewhere the picture's. If the prompt of a picture without regions names several, each
holds where its word attends. Wherever no own change holds, the fused model draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from mos_common.attention import WatchedWords
from mos_common.base_model import Base
from mos_common.prompt_grammar import parse_prompt
from mos_common.regions import Region
from mos_common.shapes import feature_maps
from mos_common.weighted_text import weighted_text
from mos_common.words import Vocabulary
from mos_common.written_prompts import Phase, concepts_named

# The layout of a picture is settled early: the maps of this part of the steps place the concepts.
WATCHED_STEPS = 0.25
# A cell belongs to a word that attends to it more than to the average cell, by this factor.
LEAST_ATTENTION = 1.0


@dataclass(frozen=True)
class Names:
    """The concepts that each prompt, and each region's prompt, names."""

    prompts: tuple[tuple[str, ...], ...]
    regions: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, base: Base, prompts: Sequence[str], regions: Sequence[Region], vocabulary: Vocabulary) -> Names:
        """Read them from the prompts.

        Raises:
            RequestError: a prompt names an unknown concept.

        """
        return cls(
            tuple(tuple(concepts_named(base, prompt, vocabulary)) for prompt in prompts),
            tuple(tuple(concepts_named(base, region.prompt, vocabulary)) for region in regions),
        )

    @property
    def everywhere(self) -> str | None:
        """The concept whose change holds in every cell of every picture, if there is one."""
        named = set(self.prompts) | set(self.regions)
        return next(iter(named))[0] if len(named) == 1 and len(next(iter(named))) == 1 else None

    @property
    def several(self) -> bool:
        """Whether words must be watched: some prompt names several concepts, without regions."""
        return not self.regions and any(len(tokens) > 1 for tokens in self.prompts)

    def slots(self, known: Sequence[str] | Mapping[str, object]) -> tuple[str, ...]:
        """Return the concepts of `known` that have a place of their own, in a fixed order."""
        alone = [tokens for tokens in (*self.prompts, *self.regions) if len(tokens) == 1]
        placed = [*alone, *(self.prompts if self.several else ())]
        return tuple(dict.fromkeys(token for tokens in placed for token in tokens if token in known))


def prompt_shares(
    names: Names, slots: Sequence[str], active: Sequence[int], of_region: Float[Tensor, "active cells"]
) -> Float[Tensor, "prompts slots cells"]:
    """Return each slot's share in the cells of a feature map, where a prompt names one concept.

    `of_region` are the shares of the regions that hold now, whose numbers are `active`; the
    pictures' prompts have the rest.
    """
    found = torch.zeros(len(names.prompts), len(slots), of_region.shape[1])
    for number, share in zip(active, of_region, strict=True):
        tokens = names.regions[number]
        if len(tokens) == 1 and tokens[0] in slots:
            found[:, slots.index(tokens[0])] += share
    outside = (1 - of_region.sum(dim=0)).clamp(min=0)
    for row, tokens in enumerate(names.prompts):
        if len(tokens) == 1 and tokens[0] in slots:
            found[row, slots.index(tokens[0])] += outside
    return found


class WordPlaces(WatchedWords):
    """Watch where each named word attends in the first steps, and place its concept there.

    `owners[p]` has the concept of each watched word of prompt p, `size` is that of the latents.
    Concepts without an own change compete for cells as well; theirs are drawn by the fused model.
    """

    def __init__(
        self, positions: Int[Tensor, "batch words"], owners: Sequence[Sequence[str]], size: tuple[int, int]
    ) -> None:
        super().__init__(positions)
        self._owners, self._maps = owners, feature_maps(*size)
        self._watching, self._seen = True, dict[int, Tensor]()

    def look(self, place: int, query: Tensor, key: Tensor) -> None:
        """Record, until the places are fixed."""
        if not self._watching:
            return
        super().look(place, query, key)
        seen = self.maps.pop(place)[-len(self._owners) :]
        self._seen[place] = self._seen[place] + seen if place in self._seen else seen

    def fixed(self, slots: Sequence[str]) -> Float[Tensor, "prompts slots height width"]:
        """Stop watching; return 1 in the cells of each slot's concept, 0 elsewhere."""
        self._watching = False
        attended = self._attended()
        won = torch.zeros(len(self._owners), len(slots), *attended.shape[2:])
        for row, owners in enumerate(self._owners):
            concepts = tuple(dict.fromkeys(owners))
            if len(concepts) < 2:
                continue
            of = [attended[row, [word for word, owner in enumerate(owners) if owner == each]] for each in concepts]
            most, winner = torch.stack([each.mean(dim=0) for each in of]).max(dim=0)
            for number, concept in enumerate(concepts):
                if concept in slots:
                    won[row, slots.index(concept)] = ((winner == number) & (most > LEAST_ATTENTION)).float()
        return won

    def _attended(self) -> Float[Tensor, "prompts words height width"]:
        """Return the attention of each cell to each word, in parts of the word's mean.

        Every cross-attention counts alike, whatever its resolution and the sharpness of its maps.
        """
        maps = [seen.float().cpu().reshape(*seen.shape[:2], *self._maps[seen.shape[2]]) for seen in self._seen.values()]
        finest = max((each.shape[2], each.shape[3]) for each in maps)
        relative = [each / each.mean(dim=(2, 3), keepdim=True).clamp(min=1e-12) for each in maps]
        enlarged = [interpolate(each, size=finest, mode="bilinear", align_corners=False) for each in relative]
        return torch.stack(enlarged).mean(dim=0)


def word_places(
    base: Base, prompts: Sequence[str], vocabulary: Vocabulary, phases: Sequence[Phase], steps: int
) -> WordPlaces:
    """Return the watch over the named words of each prompt, where they are in the first phase."""
    words, first = [places_of_words(base, prompt, vocabulary, steps) for prompt in prompts], phases[0].conditioning
    longest = max(len(of) for of in words)
    positions = [[position for position, _ in of] + [0] * (longest - len(of)) for of in words]
    unconditional = [[0] * longest] * first.unconditional_rows
    of_rows = torch.tensor([*unconditional, *positions], device=base.device)
    return WordPlaces(of_rows, [[token for _, token in of] for of in words], first.size)


def places_of_words(base: Base, prompt: str, vocabulary: Vocabulary, steps: int) -> list[tuple[int, str]]:
    """Return where the concepts' words stand in the encoding of a written prompt's first phase.

    A place counts through all chunks; beside it stands its concept.
    """
    text = weighted_text(base, parse_prompt(prompt).parts(0, steps, steps), vocabulary)
    chunks = enumerate(chunk.ids.words for chunk in text.chunks)
    return [(n * base.text_length + place, token) for n, of in chunks for place, token, _ in of]
