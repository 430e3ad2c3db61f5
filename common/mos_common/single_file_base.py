"""Open a single-file checkpoint as the parts of a base model, offline.

diffusers converts the authors' names of the weights into its own. The configurations come from
`architectures/` (Stable Diffusion 1.x, 2.x and XL at their published sizes; `clip/` is the one
vocabulary of them all), or, for a model of other sizes, from a folder NAME.config beside the file.
Every tensor is used, is known not to matter (`UNUSED`), or refuses the file.
"""

from __future__ import annotations

import json
import logging
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mos_common.checkpoint_kinds import CLIP, OPEN_CLIP, UNET, VAES, Kind, kind_of
from mos_common.checkpoint_schedule import V, check_latent_scale, has_zero_terminal_snr, prediction_of
from mos_common.errors import BaseModelError
from mos_common.fingerprint import text_module_name
from mos_common.safe_reading import Weights, open_weights

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

log = logging.getLogger(__name__)

ARCHITECTURES = Path(__file__).parent / "architectures"
MERGES = ARCHITECTURES / "clip" / "merges.txt.xz"  # packed, so that a clone stays small
EMA = "model_ema."
UNUSED = (
    (r"^model_ema\.|\.model_ema\.", "averaged weights beside the trained ones, which are used"),
    (r"^(betas|alphas_cumprod|sqrt_|log_one_minus_|posterior_|logvar|lvlb_weights|denoiser\.)", "the noise schedule"),
    (r"^(v_pred|ztsnr|scale_factor)$", "marks, which checkpoint_schedule.py reads"),
    (r"\.(position_ids|attn_mask|logit_scale)$", "constants of CLIP"),
    (r"^(cond_stage_model|conditioner\.embedders\.0)\.(model|transformer)\.text_projection", "an output nobody reads"),
    (r"^(first_stage_model|vae)\.loss\.", "the discriminator that the VAE was trained with"),
)
IN_PROJECTION = re.compile(r"\.attn\.in_proj_(weight|bias)$")  # three matrices in one, which diffusers takes apart
VAE_ATTENTION = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")  # stored as 1x1 convolutions
OPEN_CLIP_LAYER = re.compile(r"\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: its weights, its kind, and the folder with its configurations.

    `scheduler_arguments` change the scheduler's configuration to what the checkpoint predicts.
    """

    name: str
    kind: Kind
    weights: Weights
    folder: Path
    scheduler_arguments: Mapping[str, Any] = field(default_factory=dict)

    def load_model(self, part: str, kind: Any) -> tuple[nn.Module, dict[str, Any]]:
        """Return a part as a model of class `kind`, float32, and which tensors were not found.

        The second value has the keys that `from_pretrained(output_loading_info=True)` returns.

        Raises:
            BaseModelError: tensors have other shapes than the configuration says.

        """
        module = _empty(kind, self.folder / part)
        converted, left = self._converted(part, module)
        names = {_canonical(name, part): name for name in module.state_dict()}
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        for name, tensor in converted.items():
            if name in names and tuple(tensor.shape) != shapes[names[name]]:
                raise BaseModelError(
                    f"{self.name} is a checkpoint of {self.kind.value} of another size: {part}.{name} is "
                    f"{tuple(tensor.shape)}, {self.folder / part} makes it {shapes[names[name]]}. Put the model's own "
                    "configurations beside the file: a folder "
                    f"{Path(self.name).with_suffix('.config').name} like a diffusers folder, without its weights"
                )
        found = {names[name]: tensor for name, tensor in converted.items() if name in names}
        with torch.no_grad():
            module.load_state_dict(found, strict=False)
        return module, {
            "missing_keys": set(module.state_dict()) - set(found),
            "unexpected_keys": left | (converted.keys() - names.keys()),
            "mismatched_keys": set(),
            "error_msgs": [],
        }

    def load_tokenizer(self, part: str) -> CLIPTokenizer:
        """Return a tokenizer, with CLIP's own vocabulary if the configurations have none."""
        from transformers import AddedToken, CLIPTokenizer

        folder = self.folder / part
        if self.folder.parent != ARCHITECTURES:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        told = {key: value for key, value in config.items() if key.endswith("_token") or key == "model_max_length"}
        for key, value in told.items():
            if isinstance(value, dict):
                told[key] = AddedToken(**{flag: set_to for flag, set_to in value.items() if flag != "__type"})
        merges = _merges_of_clip()
        return CLIPTokenizer(vocab=_tokens_of_clip(merges), merges=merges, **told)

    def _converted(self, part: str, module: Any) -> tuple[dict[str, Tensor], set[str]]:
        """Return the tensors of a part by diffusers' names, and the file's names of those left."""
        from diffusers.loaders import single_file_utils as convert

        taken = self._tensors(part, module)
        match part:
            case "unet":
                converted = convert.convert_ldm_unet_checkpoint(taken, dict(module.config))
            case "vae":
                converted = convert.convert_ldm_vae_checkpoint(taken, dict(module.config))
            case _ if any(name.startswith(OPEN_CLIP) for name in taken):
                prefix = next(prefix for prefix in OPEN_CLIP if next(iter(taken)).startswith(prefix))
                # The converter only asks for the width, which older files do not show.
                like = SimpleNamespace(config=module.config)
                converted = convert.convert_open_clip_checkpoint(like, taken, prefix=prefix)
            case _:
                converted = convert.convert_ldm_clip_checkpoint(taken)
        used = {id(tensor) for tensor in converted.values()}
        left = {
            name
            for name, tensor in taken.items()
            if id(tensor) not in used and not IN_PROJECTION.search(name) and not name.endswith("text_projection")
        }
        return {_canonical(name, part): tensor for name, tensor in converted.items()}, left

    def _tensors(self, part: str, module: Any) -> dict[str, Tensor]:
        """Return the file's tensors of one part, by the file's names."""
        prefixes = {"unet": (UNET,), "vae": VAES}.get(part) or (_text_encoder(self.kind, part),)
        layers = int(module.config.num_hidden_layers) if part.startswith("text") else 0
        taken = {}
        for name in self.weights.shapes:
            if not name.startswith(prefixes) or _unused(name):
                continue
            layer = OPEN_CLIP_LAYER.search(name)
            if self.kind is Kind.TWO and layer and int(layer[1]) == layers:
                continue  # 2.x reads the last but one layer of OpenCLIP; files hold the last one too
            tensor = self.weights.read(name)
            if not tensor.is_floating_point():
                raise BaseModelError(
                    f"{self.name}: {name} holds {str(tensor.dtype).removeprefix('torch.')} numbers, it is quantised: "
                    "use the float16 or float32 file"
                )
            taken[name] = tensor.flatten(1) if VAE_ATTENTION.search(name) else tensor
        if any(tensor.itemsize == 1 for tensor in taken.values()):
            log.warning(
                "%s: its %s is stored in 8-bit numbers, which lost bits: it is another base than the float16 file",
                self.name,
                part,
            )
        return taken


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a single-file checkpoint of Stable Diffusion 1.x, 2.x or XL.

    Raises:
        BaseModelError: it is something else, lacks a part, holds tensors that are not known, or
            does not say what its UNet predicts.

    """
    weights = open_weights(path)
    kind = kind_of(str(path), weights.shapes, weights.metadata)
    _refuse_unknown(path, kind, weights)
    config = path.with_suffix(".config")
    beside = config if config.is_dir() else None
    prediction = prediction_of(path, kind, weights, beside)
    folder = beside or ARCHITECTURES / _shipped(kind, prediction)
    check_latent_scale(path, weights, folder)
    told = {} if beside or kind is Kind.TWO or prediction != V else {"prediction_type": V}
    if has_zero_terminal_snr(path, weights, folder) and not beside:
        told |= _zero_terminal_snr(path, folder)
    if any(name.startswith(EMA) for name in weights.shapes):
        log.info("%s holds averaged (EMA) weights too; the trained ones are used, as diffusers does", path)
    for suffix in (".vae.safetensors", ".vae.pt", ".vae.ckpt"):
        if path.with_suffix(suffix).is_file():
            log.warning("%s: the VAE in the file is used, not %s beside it", path, path.with_suffix(suffix).name)
    return Checkpoint(str(path), kind, weights, folder, told)


def _shipped(kind: Kind, prediction: str) -> str:
    """Return the folder of an architecture; 2.x has two, of 512 and 768 pixels."""
    of_two = "stable-diffusion-2-v" if prediction == V else "stable-diffusion-2-base"
    return {Kind.ONE: "stable-diffusion-1", Kind.TWO: of_two, Kind.XL: "stable-diffusion-xl"}[kind]


def _zero_terminal_snr(path: Path, folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    if config["_class_name"] == "PNDMScheduler":
        raise BaseModelError(
            f"{path} was trained to zero terminal SNR (ztsnr), which the scheduler of its kind cannot draw: put "
            f"configurations with a DDIMScheduler and rescale_betas_zero_snr into the folder "
            f"{path.with_suffix('.config').name} beside it"
        )
    # Only this spacing begins at the step without signal (Lin et al. 2023, section 3.3).
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _refuse_unknown(path: Path, kind: Kind, weights: Weights) -> None:
    ours = (UNET, *VAES, *CLIP, *OPEN_CLIP)
    unknown = [name for name in weights.shapes if not name.startswith(ours) and not _unused(name)]
    if unknown:
        raise BaseModelError(
            f"{path} is a checkpoint of {kind.value} with {len(unknown)} tensors that it has no place for, such as "
            f"{min(unknown)}: what they do to a picture is not known, so use a checkpoint without them"
        )
    if all(any(name.startswith(prefix) for name in weights.shapes) for prefix in VAES):
        raise BaseModelError(f"{path} has two VAEs ({VAES[0]}… and {VAES[1]}…): use a checkpoint with one")


def _unused(name: str) -> bool:
    return any(re.search(pattern, name) for pattern, _ in UNUSED)


def _text_encoder(kind: Kind, part: str) -> str:
    return {
        (Kind.ONE, "text_encoder"): CLIP[0],
        (Kind.TWO, "text_encoder"): OPEN_CLIP[0],
        (Kind.XL, "text_encoder"): CLIP[1],
        (Kind.XL, "text_encoder_2"): OPEN_CLIP[1],
    }[kind, part]


def _canonical(name: str, part: str) -> str:
    return text_module_name(name) if part.startswith("text") else name


def _empty(kind: Any, folder: Path) -> Any:
    """Return a model of a configuration, whose weights are yet to be read.

    Torch's generator is left as it was, as `from_pretrained` leaves it.
    """
    from diffusers.models.modeling_utils import no_init_weights

    with torch.random.fork_rng(devices=[]), no_init_weights():
        if hasattr(kind, "load_config"):  # of diffusers
            return kind.from_config(kind.load_config(folder, local_files_only=True)).float()
        outputs = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True, **outputs)).float()


def _merges_of_clip() -> list[tuple[str, str]]:
    """Return the pairs that CLIP's tokenizer joins, in their order."""
    with lzma.open(MERGES, "rt", encoding="utf-8") as packed:
        lines = packed.read().splitlines()[1:]  # the first is the version
    return [(left, right) for left, right in (line.split() for line in lines)]


def _tokens_of_clip(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the number of every token of CLIP.

    They are the characters that stand for bytes, in order; the same at the end of a word; what each
    merge makes; and the two marks around a text.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    characters = sorted(ByteLevel.alphabet())
    joined = ["".join(pair) for pair in merges]
    tokens = [*characters, *(f"{each}</w>" for each in characters), *joined, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}
