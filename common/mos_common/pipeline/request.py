"""What is to be drawn, and drawing it with a model: the one way of the command and the pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.base_names import short_name
from mos_common.control.condition import Control
from mos_common.drawing import Drawing, Seed, draw, scheduler_for
from mos_common.drawing_steps import AfterStep, OnLatents
from mos_common.drawn_regions import drawn_region
from mos_common.pipeline.attaching import attached_model, is_named_in
from mos_common.pipeline.models import Opened
from mos_common.progress import CountProgress
from mos_common.recipes import Recipe, machine_of, settings_of
from mos_common.regions import Region, shares
from mos_common.written_prompts import concepts_named

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

log = logging.getLogger(__name__)
UNKNOWN = "0" * 64  # a digest of the same length, where the picture is not drawn yet
SEEN = 0.05  # share of the best cell; less changes nothing that anybody sees


@dataclass(frozen=True)
class Request:
    """What is to be drawn: one picture for each prompt and seed, in one batch."""

    prompts: tuple[str, ...]
    seeds: tuple[Seed, ...] = (0,)
    regions: tuple[Region, ...] = ()
    how: Drawing = Drawing()  # noqa: RUF009 it is frozen
    controls: tuple[Control, ...] = ()

    def drawn(self) -> list[str]:
        """Return the prompts that are drawn: the pictures' and those of regions."""
        return [*dict.fromkeys(self.prompts), *(region.prompt for region in self.regions)]

    def guidance(self, base: Base) -> float:
        """Return the scale of guidance, by default the base's own."""
        return base.preset.guidance if self.how.guidance is None else self.how.guidance

    def texts(self, base: Base) -> list[str]:
        """Return all prompts that are drawn, and with guidance those that are drawn away from."""
        away = [self.how.negative, *(region.negative or "" for region in self.regions)]
        return self.drawn() if self.guidance(base) == 1 else [*self.drawn(), *away]


def draw_request(
    request: Request,
    base: Base,
    opened: Opened,
    *,
    on_step: CountProgress | None = None,
    on_latents: OnLatents | None = None,
    scheduler: SchedulerMixin | None = None,
    after_step: AfterStep | None = None,
    decoded: bool = True,
) -> Float[Tensor, "pictures channels height width"]:
    """Draw a request with a model; without `decoded`, return its latents.

    Raises:
        RequestError, DrawingError: as `draw`.

    """
    with attached_model(opened, base, request.texts(base)) as own:
        return draw(
            base,
            request.prompts,
            request.seeds,
            vocabulary=opened.vocabulary,
            regions=request.regions,
            how=request.how,
            on_step=on_step,
            on_latents=on_latents,
            own=own,
            controls=request.controls,
            scheduler=scheduler,
            after_step=after_step,
            decoded=decoded,
        )


def recipe_of(request: Request, base: Base, opened: Opened) -> Recipe:
    """Return the recipe of a batch of one prompt and of seeds, whose pictures are not drawn yet.

    Raises:
        RequestError: a prompt names a concept that the model does not have.

    """
    prompt = request.prompts[0]
    assert all(other == prompt for other in request.prompts), "a recipe has one prompt"
    of_regions = [text for region in request.regions for text in (region.prompt, region.negative or "")]
    texts = [prompt, request.how.negative, *of_regions]
    named = {token for text in texts for token in concepts_named(base, text, opened.vocabulary)}
    return Recipe(
        prompt=prompt,
        regions=[drawn_region(region) for region in request.regions],
        seeds=[seed for seed in request.seeds if isinstance(seed, int)],
        place=None,
        settings=settings_of(request.how, base),
        sampler=type(scheduler_for(base, request.how)).__name__,
        model=opened.told,
        base=base.fingerprint,
        base_name=short_name(base.name),
        concepts=[concept for concept in opened.concepts if concept.token in named],
        own=sorted(opened.own),
        controls=[each.told for each in request.controls if each.told],
        machine=machine_of(base),
        pixels=UNKNOWN,
    )


def say_what_is_not_used(request: Request, opened: Opened, base: Base) -> None:
    """Log what was asked for and changes nothing: no concept, negative prompts, hidden regions."""
    if opened.vocabulary and not any(is_named_in(text, opened, base) for text in request.texts(base)):
        known = ", ".join(sorted(opened.vocabulary))
        log.info("no concept is named in the prompt, so the base alone draws it; this model has %s", known)
    negatives = request.how.negative or any(region.negative for region in request.regions)
    if request.guidance(base) == 1 and negatives:
        log.warning("the negative prompt is not used: guidance is 1, which draws without it")
    if not request.regions:
        return
    placed = shares(request.regions, *(side // base.pixels_per_latent for side in request.how.sized_for(base)))
    for region, share in zip(request.regions, placed, strict=True):
        if share.max() < SEEN:
            log.warning(
                "region %r is hardly seen: it is smaller than a cell, hidden by others, or keeps all", region.prompt
            )
