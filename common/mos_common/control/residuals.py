"""Compute what conditions add to the UNet, through diffusers' own arguments.

With wi the weight of condition i and si its region's share of each cell (1 without a region),

    a T2I-Adapter    h ← h + Σi wi si · fi      after each level of the UNet's first half
    a ControlNet     r ← r + Σi wi si · gi(x, t, text)     to each skip connection and to the middle

on both rows of guidance, as diffusers' pipelines do. The features fi depend on the picture alone
and are computed once for a drawing; gi is computed in every step.

The text of a ControlNet: it has one, not one for each layer. It reads the mean over layers of the
encodings of the prompt, which for ordinary words is the encoding itself; concepts' words are near
their class words, with which ControlNets were trained. A condition for a region reads that region's
prompts, since that is what is drawn there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.conditioning import Conditioning
from mos_common.control.condition import Control

if TYPE_CHECKING:
    from mos_common.attention import ConditionedUNet


class Residuals:
    """The conditions of one drawing of (height, width) in pixels; the UNet asks in every step."""

    def __init__(self, base: Base, controls: Sequence[Control], size: tuple[int, int]) -> None:
        # A condition of weight 0 is none, so that the drawing has the same bits as without it.
        self._controls = [control for control in controls if control.weight > 0]
        pictures = [control.pixels(*size).to(base.device, base.dtype) for control in self._controls]
        self._pictures = dict(enumerate(pictures))
        self._features: dict[int, list[Tensor]] = {
            number: control.adapter.model(pictures[number])
            for number, control in enumerate(self._controls)
            if not control.adapter.is_controlnet
        }

    def arguments(
        self, unet: ConditionedUNet, noisy: Float[Tensor, "batch c h w"], time: Tensor, added: dict[str, Tensor] | None
    ) -> dict[str, Any]:
        """Return the arguments that the UNet takes in one step; none if nothing acts in it."""
        features: dict[int, Tensor] = {}
        skips: dict[int, Tensor] = {}
        middle: dict[int, Tensor] = {}
        for number, control in enumerate(self._controls):
            if not control.acts(unet.progress) or not _region_holds(control, unet):
                continue
            if not control.adapter.is_controlnet:
                _add(features, self._features[number], control, unet)
                continue
            text = text_for(unet.conditioning, control.region)
            picture = self._pictures[number].expand(len(noisy), -1, -1, -1)
            down, mid = control.adapter.model(noisy, time, text, picture, added_cond_kwargs=added, return_dict=False)
            _add(skips, down, control, unet)
            _add(middle, [mid], control, unet)
        arguments: dict[str, Any] = {}
        if features:
            rows = [features[i].expand(len(noisy), -1, -1, -1) for i in sorted(features)]
            arguments["down_intrablock_additional_residuals"] = rows
        if skips:
            arguments["down_block_additional_residuals"] = tuple(skips[i] for i in sorted(skips))
            arguments["mid_block_additional_residual"] = middle[0]
        return arguments


def text_for(conditioning: Conditioning, region: int | None) -> Float[Tensor, "batch tokens width"]:
    """Return what a ControlNet reads: see the top."""
    text = conditioning.features.mean(dim=1)
    if region is not None:
        told, first = conditioning.regions[region], conditioning.unconditional_rows
        text[first:] = told.features.mean(dim=0)
        if told.negative is not None:
            text[:first] = told.negative.mean(dim=0)
    return text


def _region_holds(control: Control, unet: ConditionedUNet) -> bool:
    return control.region is None or control.region in unet.shares.active(unet.progress)


def _add(to: dict[int, Tensor], residuals: Sequence[Tensor], control: Control, unet: ConditionedUNet) -> None:
    """Add a condition's residuals, in its weight and its region's share, to the sums by place."""
    for place, residual in enumerate(residuals):
        weighed = residual * control.weight
        if control.region is not None:
            height, width = residual.shape[2:]
            share = unet.shares.at(unet.progress, height * width)
            own = share[unet.shares.active(unet.progress).index(control.region)]
            weighed = weighed * own.reshape(height, width).to(residual)
        to[place] = to[place] + weighed if place in to else weighed
