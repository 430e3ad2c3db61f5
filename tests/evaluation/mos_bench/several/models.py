"""What pictures are drawn with: the base, each concept's own upload, and the fused model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from mos_bench.identity.drawing.models import Model
from mos_common.base_model import Base
from mos_common.concept import Concept, words_of
from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank
from mos_common.layers import Group
from mos_common.own.attach import Kept, OwnChanges, attached_with_own

Changes = Mapping[str, LowRank]


@dataclass
class Models:
    """The base, the fused model and the single concepts by token."""

    base: Base
    fused: Model
    concepts: Mapping[str, Concept]
    kept: Kept = field(default_factory=Kept, repr=False)

    @cached_property
    def fused_changes(self) -> Changes:
        """The changes of the fused model."""
        return self.fused.changes()

    @cached_property
    def words(self) -> dict[str, Tensor]:
        """The words of every concept."""
        return {token: words_of(concept, self.base) for token, concept in self.concepts.items()}

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of every concept."""
        return {token: content_digest(concept) for token, concept in self.concepts.items()}

    def changes(self, token: str, group: Group | None = None) -> Changes:
        """Return a concept's own changes: all, or those of one group of layers."""
        pairs = self.concepts[token].pairs
        names = {layer.name for layer in self.base.layout.by_group[group]} if group else pairs.keys()
        return {name: pair for name, pair in pairs.items() if name in names}

    def attached(self, *, fused: bool, own: bool) -> AbstractContextManager[OwnChanges]:
        """Attach the fused changes, or none, with the concepts' own ones beside, or without."""
        mine = {token: concept.pairs for token, concept in self.concepts.items()} if own else {}
        return attached_with_own(self.base, self.fused_changes if fused else {}, mine, self.kept if fused else None)
