"""Tuned concepts, each tuned once and kept in a file named by its inputs.

Tuning uses the base's preset and runs to the last step. Choosing the state that looks best on the
held-back pictures would flatter the scores, which use the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mos_bench.identity.concepts.bench_concepts import BenchConcept, write_pictures
from mos_bench.identity.storage.cache import key_of
from mos_bench.identity.storage.sharing import Sharing
from mos_client.pictures.folder import find_pictures, pictures_digest
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.tune_folder import tune_folder
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import read_concept
from mos_tiny.recipe.compose import World

TO_THE_LAST_STEP = {"watch_every": "0"}
SHIPPED = Path(__file__).parent / "tuned"
"""Concepts of `--quick`, the first eight of dev and of test: as `mos-bench identity` tuned them."""


@dataclass(frozen=True)
class Variant:
    """A way to tune: a title, and the settings that differ from the preset."""

    title: str
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)


ED_LORA = Variant("ED-LoRA")
ED_LORA_1 = Variant("ED-LoRA rank 1", {"rank": "1"})
LORA = Variant("LoRA", {"method": "lora"})
CUSTOM_DIFFUSION = Variant("Custom Diffusion", {"method": "custom-diffusion"})
P_PLUS = Variant("P+", {"method": "p-plus"})
TEXTUAL_INVERSION = Variant("Textual Inversion", {"method": "textual-inversion"})


class TunedConcepts:
    """Pictures in `folder`/pictures and concept files in `tuned`; a few come with the package."""

    def __init__(self, base: Base, folder: Path, *, tuned: Path, steps: int | None = None) -> None:
        self.base, self.folder, self.tuned, self.steps = base, folder, tuned, steps
        self._world: World | None = None
        self._digests: dict[str, str] = {}
        self._read: dict[Path, Concept] = {}

    def pictures(self, concept: BenchConcept) -> Path:
        """Return the concept's folder of pictures, written at first use."""
        if self._world is None and concept.folder is None:
            self._world = World()
        to = self.folder / "pictures" / concept.slug
        if concept.folder is None and concept.name in self._digests:
            return to
        return write_pictures(concept, self.folder / "pictures", self._world or World())

    def digest(self, concept: BenchConcept) -> str:
        """Return the digest of the concept's pictures."""
        if concept.name not in self._digests:
            self._digests[concept.name] = pictures_digest(find_pictures(self.pictures(concept)))
        return self._digests[concept.name]

    def path(self, concept: BenchConcept, variant: Variant) -> Path:
        """Return the concept file's path: the shipped file if it has the same inputs."""
        config = TuningSettings.of(
            self.base.preset, steps=self.steps, changes=TO_THE_LAST_STEP | dict(variant.settings)
        )
        made_by = key_of(self.base.fingerprint, self.digest(concept), concept.class_word, asdict(config))
        method = variant.title.lower().replace(" ", "-")
        name = f"{concept.slug}.{method}.{made_by[:12]}.safetensors"
        return SHIPPED / name if (SHIPPED / name).is_file() else self.tuned / name

    def tune_all(self, concepts: Sequence[BenchConcept], variant: Variant, sharing: Sharing) -> None:
        """Return when every concept is tuned."""
        sharing.all_of(
            f"tuning {variant.title}",
            concepts,
            key=lambda concept: str(self.path(concept, variant)),
            done=lambda concept: self.path(concept, variant).is_file(),
            do=lambda concept: self._tune(concept, variant),
        )

    def concept(self, concept: BenchConcept, variant: Variant) -> Concept:
        """Return the tuned concept."""
        path = self.path(concept, variant)
        if path not in self._read:
            self._read[path] = read_concept(path)
        return self._read[path]

    def _tune(self, concept: BenchConcept, variant: Variant) -> None:
        out = self.path(concept, variant)
        request = TuneRequest(
            self.pictures(concept),
            concept.name,
            concept.class_word,
            steps=self.steps,
            settings=TO_THE_LAST_STEP | dict(variant.settings),
        )
        tune_folder(request, out, work=self.folder / "work" / out.stem, base=self.base)
