"""Draw masks for pictures that have none, with a segmentation model on disk. It is optional.

CLIPSeg (Lüddecke and Ecker, CVPR 2022, arXiv 2112.10003) marks what a word names, here the
concept's class word. transformers has the model's code; the user gives a folder with its weights.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mos_client.pictures.companions import name_key
from mos_client.pictures.folder import find_pictures
from mos_common.errors import RequestError
from mos_common.files import write_atomically

CERTAIN = 0.5
KNOWN = ("CIDAS/clipseg-rd64-refined", "CIDAS/clipseg-rd64", "CIDAS/clipseg-rd16")


def draw_masks(images: Path, class_word: str, model: Path, device: str = "cpu") -> Iterator[Path]:
    """Write `NAME.mask.png` beside every picture that has no mask, and yield each file.

    An empty mask is not written: without a mask the whole picture counts.

    Raises:
        PicturesError: the folder cannot be used.
        RequestError: `model` is not a CLIPSeg folder.

    """
    processor, network = _load(model)
    network = network.to(device)
    pictures = find_pictures(images, None)
    stems = Counter((picture.path.parent, name_key(picture.path.stem)) for picture in pictures)
    for picture in pictures:
        read = picture.read()
        if picture.mask_file is not None or read.mask is not None:
            continue
        inputs = processor(text=[class_word], images=[read.picture], return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            share = network(**inputs).logits.float().sigmoid().squeeze().cpu().numpy()
        marked = (share > CERTAIN).astype(np.uint8) * 255
        if not marked.any():
            continue
        mask = Image.fromarray(marked).resize(read.picture.size, Image.Resampling.BILINEAR)
        data = io.BytesIO()
        mask.save(data, "PNG")
        shared = stems[picture.path.parent, name_key(picture.path.stem)] > 1  # as of x.png and x.jpg
        out = picture.path.with_name(f"{picture.path.name if shared else picture.path.stem}.mask.png")
        write_atomically(out, data.getvalue())
        yield out


def _load(model: Path) -> tuple[Any, torch.nn.Module]:
    from transformers import AutoConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        kind = AutoConfig.from_pretrained(model, local_files_only=True).model_type
        if kind != "clipseg":  # transformers would initialise missing weights at random
            raise ValueError(f"it is a {kind}")
        processor = CLIPSegProcessor.from_pretrained(model, local_files_only=True)
        network = CLIPSegForImageSegmentation.from_pretrained(model, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RequestError(
            f"{model} is not a CLIPSeg model ({str(error).splitlines()[0]}): give a folder such as that of {KNOWN[0]}"
        ) from error
    return processor, network.eval()


def model_on_disk() -> Path | None:
    """Return a CLIPSeg model from this machine's hub cache, or None; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    configs = (try_to_load_from_cache(name, "config.json") for name in KNOWN)
    return next((Path(path).parent for path in configs if isinstance(path, str)), None)
