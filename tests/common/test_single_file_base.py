"""A single-file checkpoint is the same base as its diffusers folder, or is refused by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from mos_common.base_model import load_base
from mos_common.checkpoint_kinds import Kind, kind_of
from mos_common.errors import BaseModelError
from mos_common.safe_reading import Weights
from mos_common.single_file_base import ARCHITECTURES, Checkpoint, open_checkpoint
from reference.checkpoints import Miniature, miniature, write_random_sd2
from reference.ldm import checkpoint_of

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
SIZES = {"unet": 0, "vae": 83_653_863, "text_encoder": 123_060_480}
# Published numbers of parameters: of the models' papers and cards, counted by others.
PUBLISHED = {
    "stable-diffusion-1": (Kind.ONE, SIZES | {"unet": 859_520_964}),
    "stable-diffusion-2-base": (Kind.TWO, SIZES | {"unet": 865_910_724, "text_encoder": 340_387_840}),
    "stable-diffusion-2-v": (Kind.TWO, SIZES | {"unet": 865_910_724, "text_encoder": 340_387_840}),
    "stable-diffusion-xl": (Kind.XL, SIZES | {"unet": 2_567_463_684, "text_encoder_2": 694_659_840}),
}


@pytest.fixture(scope="session")
def mini(
    random_base_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    make_tokenizer: Callable[..., object],
) -> Callable[..., Miniature]:
    """Return a random model of a kind: `mini("1")`, `mini("2")`, `mini("XL")`."""
    made: dict[tuple, Miniature] = {}

    def one(kind: str, dtype: torch.dtype = torch.float32) -> Miniature:
        if (kind, dtype) not in made:
            folder = (
                write_random_sd2(tmp_path_factory.mktemp("sd2"), make_tokenizer())
                if kind == "2"
                else random_base_folder(**({"xl": True} if kind == "XL" else {}))
            )
            made[kind, dtype] = miniature(folder, dtype)
        return made[kind, dtype]

    return one


def fingerprint(path: Path) -> str:
    return load_base(str(path), device="cpu").fingerprint


@pytest.mark.parametrize("kind", ["1", "2", "XL"])
def test_a_checkpoint_and_its_folder_are_the_same_base(mini, tmp_path, kind):
    """In full and half precision, as safetensors and as a pickle."""
    files = [
        mini(kind).write(tmp_path / "full.safetensors"),
        mini(kind, torch.float16).write(tmp_path / "half.safetensors"),
        mini(kind).write(tmp_path / "full.ckpt"),
    ]
    assert {fingerprint(file) for file in files} == {fingerprint(mini(kind).folder)}


def test_opening_a_checkpoint_draws_no_random_numbers(mini, tmp_path):
    """What is seeded before a base is loaded is the same after it, in every layout."""
    file, drawn = mini("1").write(tmp_path / "a.safetensors"), []
    for path in (file, mini("1").folder):
        torch.manual_seed(7)
        load_base(str(path), device="cpu")
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_our_own_export_opens_again(sixteen, random_base_folder, tmp_path):
    from safetensors.torch import save_file

    from mos_common.exporting.single_file import checkpoint_tensors

    save_file(checkpoint_tensors(sixteen, torch.float16), tmp_path / "model.safetensors")
    shutil.copytree(random_base_folder(), tmp_path / "model.config", ignore=shutil.ignore_patterns("*.safetensors"))
    assert fingerprint(tmp_path / "model.safetensors") == sixteen.fingerprint


def test_what_a_training_leaves_in_a_checkpoint_changes_nothing(mini, sixteen, tmp_path):
    """Averaged weights, the noise schedule in half precision, constants: the trained are used."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    tensors = mini("1").tensors
    averaged = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": 0 * tensor
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    file = mini("1").write(
        tmp_path / "pruned.safetensors",
        **averaged,
        **{"alphas_cumprod": alphas.half(), "betas": betas.half(), "sqrt_alphas_cumprod": alphas.sqrt().half()},
        **{"posterior_mean_coef1": betas.half(), "logvar": torch.zeros(1000), "scale_factor": torch.tensor(0.3)},
        **{"model_ema.decay": torch.tensor(0.9999), "first_stage_model.loss.logvar": torch.zeros(())},
        **{"cond_stage_model.logit_scale": torch.tensor(4.6)},
    )
    assert fingerprint(file) == sixteen.fingerprint


def test_tensors_without_a_state_dict_around_them_are_read(mini, sixteen, tmp_path):
    torch.save(mini("1").tensors, tmp_path / "pruned.pt")
    mini("1").write(tmp_path / "pruned.safetensors")  # only for its configurations
    assert fingerprint(tmp_path / "pruned.pt") == sixteen.fingerprint
    (tmp_path / "pruned.pt").replace(tmp_path / "pruned.safetensors")  # a file is what it holds
    assert fingerprint(tmp_path / "pruned.safetensors") == sixteen.fingerprint


def test_a_vae_beside_the_checkpoint_is_said_not_to_be_used(mini, tmp_path, caplog):
    """A1111 would take it instead of the file's own."""
    file = mini("1").write(tmp_path / "anime.safetensors")
    (tmp_path / "anime.vae.pt").write_bytes(b"")
    with caplog.at_level("WARNING", logger="mos_common"):
        open_checkpoint(file)
    assert "the VAE in the file is used, not anime.vae.pt beside it" in caplog.text


def test_a_pickle_with_its_trainer_s_notes_is_read(mini, sixteen, tmp_path):
    """PyTorch Lightning names its callbacks by class; nothing of theirs is imported or run."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    sys.modules |= dict.fromkeys(names[:2], types.ModuleType("x")) | {module.__name__: module}
    try:
        notes = {"callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}}, "epoch": 3}
        torch.save({"state_dict": mini("1").tensors, **notes}, tmp_path / "sd-v1-4.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    mini("1").write(tmp_path / "sd-v1-4.safetensors")  # only for its configurations
    assert fingerprint(tmp_path / "sd-v1-4.ckpt") == sixteen.fingerprint


def test_a_pickle_that_runs_a_command_is_refused_and_nothing_is_run(mini, tmp_path):
    class Calls:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    torch.save({"state_dict": mini("1").tensors, "callbacks": Calls()}, tmp_path / "a.ckpt")
    with pytest.raises(BaseModelError, match=r"a\.ckpt is refused: it would call (posix|nt)\.system"):
        open_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "marker").exists()


def test_text_encoders_under_earlier_names_are_read(mini, sixteen, tmp_path):
    """Files of 2022 lack `text_model.`, and some hold a projection that 1.x does not use."""
    first = mini("1")
    renamed = {name.replace(".transformer.text_model.", ".transformer."): t for name, t in first.tensors.items()}
    renamed["cond_stage_model.transformer.text_projection.weight"] = torch.ones(2, 2)
    assert fingerprint(Miniature(first.folder, renamed).write(tmp_path / "old.safetensors")) == sixteen.fingerprint


def test_the_last_layer_of_openclip_is_left_out(mini, tmp_path):
    """Stable Diffusion 2 reads the last but one; its files hold one layer more than its folder."""
    layer = "cond_stage_model.model.transformer.resblocks.{}."
    last = {
        name.replace(layer.format(2), layer.format(3)): tensor.clone()
        for name, tensor in mini("2").tensors.items()
        if name.startswith(layer.format(2))
    }
    assert last
    extra = {
        "cond_stage_model.model.text_projection": torch.ones(32, 16),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }
    file = mini("2").write(tmp_path / "v2.safetensors", **last, **extra)
    assert fingerprint(file) == fingerprint(mini("2").folder)


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.output_blocks.11.1.proj_out.bias",
        "first_stage_model.decoder.mid.attn_1.k.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    ],
)
def test_a_missing_tensor_refuses_the_checkpoint(mini, tmp_path, lost):
    tensors = dict(mini("1").tensors)
    del tensors[lost]
    file = Miniature(mini("1").folder, tensors).write(tmp_path / "a.safetensors")
    with pytest.raises(BaseModelError, match="miss"):
        load_base(str(file))


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.decoder.up.3.block.0.conv9.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.7.mlp.fc1.weight",
    ],
)
def test_a_tensor_that_a_part_has_no_place_for_refuses_the_checkpoint(mini, tmp_path, name):
    file = mini("1").write(tmp_path / "a.safetensors", **{name: torch.ones(2, 2)})
    with pytest.raises(BaseModelError, match=r"unexpected|no such part reads"):
        load_base(str(file))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter.body.0.weight", r"1 tensors that it has no place for, such as adapter\.body\.0\.weight"),
        ("vae.decoder.conv_in.weight", "has two VAEs"),
    ],
)
def test_a_tensor_outside_the_parts_refuses_the_checkpoint(mini, tmp_path, name, said):
    with pytest.raises(BaseModelError, match=said):
        open_checkpoint(mini("1").write(tmp_path / "a.safetensors", **{name: torch.ones(2, 2)}))


def test_quantised_numbers_are_refused(mini, tmp_path):
    name = "first_stage_model.decoder.conv_in.bias"
    file = mini("1").write(tmp_path / "a.safetensors", **{name: torch.ones(16, dtype=torch.int8)})
    with pytest.raises(BaseModelError, match=r"holds int8 numbers, it is quantised"):
        load_base(str(file))


def test_eight_bit_numbers_are_said_to_have_lost_bits(mini, tmp_path, caplog):
    coarse = {n: t.to(torch.float8_e4m3fn) for n, t in mini("1").tensors.items() if n.startswith("first_stage_model.")}
    with caplog.at_level("WARNING", logger="mos_common"):
        load_base(str(mini("1").write(tmp_path / "a.safetensors", **coarse)), device="cpu")
    assert "its vae is stored in 8-bit numbers, which lost bits" in caplog.text


def test_a_model_of_other_sizes_asks_for_its_configurations(mini, tmp_path):
    file = mini("1").write(tmp_path / "small.safetensors", config=False)
    with pytest.raises(BaseModelError, match=r"Stable Diffusion 1.x of another size.*a folder small\.config like a"):
        load_base(str(file))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_shipped_configurations_are_the_published_models(name):
    """At real size every weight has its place, and the numbers of weights are those published."""
    kind, sizes = PUBLISHED[name]
    folder = ARCHITECTURES / name
    with torch.device("meta"):
        parts = {
            part: (
                model.from_config(model.load_config(folder / part))
                if hasattr(model, "load_config")
                else model(model.config_class.from_pretrained(folder / part))
            )
            for part, model in CLASSES.items()
            if (folder / part).is_dir()
        }
        tensors = checkpoint_of(parts, torch.float16)
        weights = Weights({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}, tensors.__getitem__)
        assert {part: sum(p.numel() for p in model.parameters()) for part, model in parts.items()} == sizes
        assert kind_of(name, weights.shapes) is kind
        checkpoint = Checkpoint(f"{name}.safetensors", kind, weights, folder)
        for part in parts:
            _, info = checkpoint.load_model(part, CLASSES[part])
            assert not any(info.values()), part


def test_the_vocabulary_is_clip_s():
    """Ids that CLIP's own tests and papers print: "a photo of a cat" between start and end."""
    checkpoint = Checkpoint("x", Kind.XL, Weights({}, {}, {}.__getitem__), ARCHITECTURES / "stable-diffusion-xl")
    first, second = (checkpoint.load_tokenizer(part) for part in ("tokenizer", "tokenizer_2"))
    for tokenizer in (first, second):
        assert tokenizer("A photo of a Cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
