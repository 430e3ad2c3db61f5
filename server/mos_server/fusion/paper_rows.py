"""Store the rows of all concepts at once, for optimisers that work on activations as published.

They need memory for every row that any layer reads, and report the amount before they start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil
import torch

from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.conditioning import read_prompts
from mos_common.drawing import Drawing, scheduler_for
from mos_common.edlora import LowRank
from mos_common.errors import FusionError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, Layer
from mos_common.progress import TextProgress
from mos_server.fusion.attachments import attached_changes
from mos_server.fusion.layerwise import changed_layers
from mos_server.fusion.moments import recording
from mos_server.fusion.recording_settings import PAPER_PROMPTS, RecordingSettings
from mos_server.fusion.statistics import Recording
from mos_server.fusion.stored_rows import StoredRows


def rows_of_concepts(
    base: Base,
    concepts: Sequence[NamedConcept],
    group: Group,
    layers: Sequence[Layer],
    settings: RecordingSettings,
    solved: Mapping[str, LowRank],
) -> list[StoredRows]:
    """Return every concept's rows of a group; the UNet is sampled from one prompt alone.

    `solved` are the fused changes of the groups before this one, which are attached.

    Raises:
        UnusableConceptError: a concept's forward pass is not finite.

    """
    if group is Group.SPATIAL:
        settings = replace(settings, contexts=PAPER_PROMPTS[:1])
    reads, rows = frozenset(layer.reads for layer in layers), []
    for named in concepts:
        attached = attached_changes(base, group, named.concept, solved, text_inputs="fused", unet_inputs="fused")
        rows.append(Recording(group, named, attached, reads, settings).record(base, StoredRows()))
    return rows


def check_memory(base: Base, concepts: Sequence[NamedConcept], steps: int, solver: str, progress: TextProgress) -> None:
    """Report the memory that stored rows take, and check that it is there.

    Raises:
        FusionError: it is not.

    """
    needed, free = memory_needed(base, concepts, steps), psutil.virtual_memory().available
    progress(f"{solver} stores the rows of all concepts: {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    if needed > free:
        raise FusionError(
            f"{solver} as published needs {needed / 2**30:.1f} GiB for the rows of {len(concepts)} concepts, "
            f"{free / 2**30:.1f} GiB are free: --method gradient needs none of it"
        )


def memory_needed(base: Base, concepts: Sequence[NamedConcept], steps: int) -> int:
    """Return the bytes of the UNet's rows for all concepts, counted in one denoising step.

    Text needs far less and is released by then.
    """
    layers = changed_layers(base, concepts, Group.SPATIAL)
    counted, how = StoredRows(), Drawing(steps=steps)
    scheduler = scheduler_for(base, how)
    height, width = (side // base.pixels_per_latent for side in how.sized_for(base))
    latents = torch.zeros(1, base.latent_channels, height, width, device=base.device, dtype=base.dtype)
    with torch.no_grad(), conditioned(base, read_prompts(base, [""], {})) as unet, recording(layers, counted):
        unet.predict(latents, torch.tensor(0, device=base.device))
    scheduler.set_timesteps(steps)  # some add a step of their own
    return counted.bytes * len(scheduler.timesteps) * len(concepts)
