"""Requests for drawings: the missing ones are drawn in batches of one model, size and regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.drawing.models import Model
from mos_bench.identity.storage.cache import Cache, key_of, picture_bytes
from mos_bench.identity.storage.sharing import Sharing
from mos_common.base_model import Base
from mos_common.digests import digest_of_code
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.regions import Region

BATCH = 16
# The code that decides a drawing: when it changes, everything is drawn again.
DRAWN_BY = (
    *(
        f"mos_common.{name}"
        for name in [
            "attention",
            "base_loading",
            "base_model",
            "conditioning",
            "drawing",
            "edlora",
            "layers",
            "prompt_grammar",
            "prompt_names",
            "regions",
            "samplers",
            "shapes",
            "weighted_text",
            "words",
            "written_prompts",
        ]
    ),
    *(f"mos_bench.identity.{name}" for name in ["drawing.models", "drawing.requests", "storage.cache"]),
)


@dataclass(frozen=True)
class Request:
    """A request for one picture."""

    model: Model
    prompt: str
    seed: int
    how: Drawing
    regions: tuple[Region, ...] = ()
    base: str = ""

    @cached_property
    def key(self) -> str:
        """The digest of everything that decides the picture."""
        texts = " ".join([self.prompt, *(region.prompt for region in self.regions)])
        regions = [asdict(region) for region in self.regions]
        made_of = self.model.made_of(texts)
        return key_of(digest_of_code(DRAWN_BY), self.base, made_of, self.prompt, self.seed, asdict(self.how), regions)


def draw_all(base: Base, cache: Cache, sharing: Sharing, requests: Sequence[Request], what: str) -> None:
    """Return when all requests are in the cache.

    Batches are formed before the cache is read, so every process has the same ones.
    """
    together: dict[object, list[Request]] = {}
    for request in {request.key: request for request in requests}.values():
        alike = (request.model.attached, request.model.scale, request.how, request.regions)
        together.setdefault(alike, []).append(request)
    batches = [group[i : i + BATCH] for group in together.values() for i in range(0, len(group), BATCH)]

    def missing(batch: list[Request]) -> list[str]:
        return cache.missing("drawings", [request.key for request in batch])

    def do(batch: list[Request]) -> None:
        wanted = set(missing(batch))
        left = [request for request in batch if request.key in wanted]
        pictures = _drawn(base, left)
        cache.put("drawings", {request.key: picture_bytes(p) for request, p in zip(left, pictures, strict=True)})

    sharing.all_of(what, batches, key=lambda batch: batch[0].key, done=lambda batch: not missing(batch), do=do)


def _drawn(base: Base, batch: Sequence[Request]) -> Float[Tensor, "n 3 h w"]:
    first = batch[0]
    vocabulary = {token: words for request in batch for token, words in request.model.vocabulary.items()}
    with attached(base, first.model.changes()):
        return draw(
            base,
            [request.prompt for request in batch],
            [request.seed for request in batch],
            vocabulary=vocabulary,
            regions=first.regions,
            how=first.how,
        )
