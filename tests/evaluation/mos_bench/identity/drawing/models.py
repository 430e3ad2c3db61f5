"""Models to draw with: the base alone, one tuned concept, or fused concepts.

A `Model` is identified by digests and loads its weights only when it draws. Fused models are kept
in files named by their specification (base, concepts, weights, settings) and the code of fusion, so
changed code fuses anew. A drawing is keyed by the digest of the resulting tensors: if they are the
same, it is not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mos_bench.identity.storage.cache import drawn_on, key_of
from mos_common.base_model import Base
from mos_common.concept import Concept, words_of
from mos_common.concept_file import content_digest
from mos_common.digests import digest_of_code, digest_of_tensors, modules_of
from mos_common.edlora import LowRank
from mos_common.files import write_atomically
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.method import MethodSettings
from mos_server.fusion.statistics import RECORDED_BY

Changes = Mapping[str, LowRank]
# The code that decides a fused model: when it changes, models are fused again.
FUSED_BY = tuple(dict.fromkeys([*modules_of("mos_server.fusion"), *RECORDED_BY]))


@dataclass(frozen=True)
class Model:
    """A model, loaded lazily.

    `attached` identifies the changes, `words` maps each token to its embeddings and their digest,
    `load` returns the changes.
    """

    attached: str
    load: Callable[[], Changes] = field(repr=False)
    words: Mapping[str, tuple[str, Tensor]] = field(default_factory=dict, repr=False)
    scale: float = 1.0

    def changes(self) -> Changes:
        """Return the changes, each times `scale`."""
        loaded = self.load()
        if self.scale == 1:
            return loaded
        return {name: replace(pair, alpha=pair.alpha * self.scale) for name, pair in loaded.items()}

    def made_of(self, prompt: str) -> object:
        """Return the parts of this model that a drawing of `prompt` depends on."""
        return [
            self.attached,
            self.scale,
            sorted(digest for token, (digest, _) in self.words.items() if token in prompt),
        ]

    @property
    def vocabulary(self) -> dict[str, Tensor]:
        """The embeddings of every token."""
        return {token: words for token, (_, words) in self.words.items()}


def untouched() -> Model:
    """Return the base without changes."""
    return Model("", dict)


def single(base: Base, concept: Concept) -> Model:
    """Return one concept's own model."""
    return Model(content_digest(concept), lambda: concept.pairs, _words(base, [concept]))


def words_only(base: Base, concept: Concept) -> Model:
    """Return the untouched base with the concept's words (figure 3 of the paper)."""
    return Model("", dict, _words(base, [concept]))


def with_own(base: Base, fused: Model, concept: Concept, group: Group = Group.SPATIAL) -> Model:
    """Return a fused model with one group's changes from a concept.

    Spatial ones are what own changes beside a model bring.
    """
    in_group = {layer.name for layer in base.layout.by_group[group]}

    def load() -> Changes:
        others = {name: pair for name, pair in fused.changes().items() if name not in in_group}
        return others | {name: pair for name, pair in concept.pairs.items() if name in in_group}

    attached = key_of(fused.attached, fused.scale, "own", group.name, content_digest(concept))
    return replace(fused, attached=attached, load=load, scale=1.0)


@dataclass(frozen=True)
class FusionSpec:
    """One fused model to make; `scale` multiplies its changes: λ of the scaled sum."""

    concepts: tuple[Concept, ...]
    settings: MethodSettings
    scale: float = 1.0

    def name(self, base: Base) -> str:
        """Return the digest that names the fused model."""
        digests = sorted(content_digest(concept) for concept in self.concepts)
        code = digest_of_code(FUSED_BY)
        return key_of(drawn_on(base), digests, self.settings.method, asdict(self.settings), code)


class FusedModels:
    """Fused models, each made once, and the second moments they share, in `folder`."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.folder = base, folder

    def path(self, spec: FusionSpec) -> Path:
        """Return the file of the changes."""
        return self.folder / "fused" / f"{spec.name(self.base)}.safetensors"

    def has(self, spec: FusionSpec) -> bool:
        """Return True if the model was already made."""
        return self.path(spec).is_file()

    def make(self, spec: FusionSpec) -> None:
        """Fuse, unless already done."""
        if self.has(spec):
            return
        named = [NamedConcept("", concept) for concept in spec.concepts]
        fused = fuse(self.base, named, spec.settings, moments_dir=self.folder / "moments", progress=lambda line: None)
        tensors = {}
        for name, pair in fused.changes.items():
            tensors[f"{name}.A"] = pair.A.float().contiguous()
            tensors[f"{name}.B"] = (pair.scale * pair.B).float().contiguous()
        metadata = {
            "digest": digest_of_tensors(tensors),
            "method": spec.settings.method,
            "drift": json.dumps(fused.manifest.drift),
            "excluded": json.dumps([excluded.token for excluded in fused.manifest.excluded]),
        }
        write_atomically(self.path(spec), save(tensors, metadata))

    def model(self, spec: FusionSpec) -> Model:
        """Return a model that was made."""
        path = self.path(spec)
        with safe_open(path, "pt") as file:
            digest = file.metadata()["digest"]
        return Model(digest, lambda: _read(path), _words(self.base, spec.concepts), spec.scale)


def _read(path: Path) -> Changes:
    tensors = load_file(path)
    names = sorted({name[:-2] for name in tensors})
    return {n: LowRank(tensors[f"{n}.A"], tensors[f"{n}.B"], float(max(1, len(tensors[f"{n}.A"])))) for n in names}


def _words(base: Base, concepts: Sequence[Concept]) -> dict[str, tuple[str, Tensor]]:
    vocabulary = {}
    for concept in concepts:
        words = words_of(concept, base)
        vocabulary[concept.name] = (digest_of_tensors({"words": words}), words)
    return vocabulary
