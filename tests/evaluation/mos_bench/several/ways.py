"""The ways to draw one picture of several concepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.drawing.requests import DRAWN_BY
from mos_bench.identity.storage.cache import drawn_on, key_of
from mos_bench.several.models import Models
from mos_bench.several.rivals.masked import masked
from mos_bench.several.rivals.mixed import blended, composite, switched
from mos_bench.several.scenes import Asked
from mos_common.digests import digest_of_code, modules_of
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached

Draw = Callable[[Models, Asked, Drawing], Float[Tensor, "3 height width"]]
# The code that decides a picture: when it changes, everything is drawn again.
SEVERAL_BY = tuple(
    dict.fromkeys(
        [
            *(*DRAWN_BY, *modules_of("mos_common.own"), *modules_of("mos_bench.several.rivals")),
            *(f"mos_bench.several.{name}" for name in ("models", "scenes", "ways")),
        ]
    )
)


@dataclass(frozen=True)
class Way:
    """A way to draw: its title, whether it draws with a fused model, and how."""

    title: str
    draw: Draw
    fused: bool = False

    def key(self, models: Models, asked: Asked, how: Drawing) -> str:
        """Return the digest of everything that decides the picture."""
        by = [models.fused.attached if self.fused else "", [models.digests[name] for name in asked.names]]
        return key_of(digest_of_code(SEVERAL_BY), drawn_on(models.base), self.title, by, asked.said(), how.steps)


def _product(*, fused: bool, own: bool, regions: bool, named: bool = True) -> Draw:
    """Return the product's own way to draw, with these parts of it."""

    def drawn(models: Models, asked: Asked, how: Drawing) -> Tensor:
        prompt = asked.prompt if named and not regions else asked.in_class_words
        with models.attached(fused=fused, own=own) as acting:
            return draw(
                models.base,
                [prompt],
                [asked.seed],
                vocabulary=models.words,
                regions=asked.regions if regions else (),
                how=asked.sized(how),
                own=acting,
            )[0]

    return drawn


def single(models: Models, asked: Asked, how: Drawing) -> Float[Tensor, "3 height width"]:
    """Draw the one concept of a picture by its own model, all groups of layers."""
    (name,) = asked.names
    with attached(models.base, models.changes(name)):
        return draw(models.base, [asked.prompt], [asked.seed], vocabulary=models.words, how=asked.sized(how))[0]


CLASS_WORDS = Way("class words (floor)", _product(fused=False, own=False, regions=False, named=False))
FUSED = Way("fused, one prompt", _product(fused=True, own=False, regions=False), fused=True)
OWN = Way("own, one prompt", _product(fused=True, own=True, regions=False), fused=True)
FUSED_IN_REGIONS = Way("fused, regions", _product(fused=True, own=False, regions=True), fused=True)
OWN_IN_REGIONS = Way("own, regions", _product(fused=True, own=True, regions=True), fused=True)
SINGLE = Way("its own model", single)
WAYS = (
    *(CLASS_WORDS, FUSED, OWN),
    Way("LoRA Switch, one prompt", switched),
    Way("LoRA Composite, one prompt", composite),
    *(FUSED_IN_REGIONS, OWN_IN_REGIONS),
    Way("masked LoRAs, regions", masked),
    Way("blended predictions, regions", blended),
)
WAYS_ALONE = (CLASS_WORDS, FUSED, OWN, SINGLE)
