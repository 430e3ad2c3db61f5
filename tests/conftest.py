"""Shared fixtures: one thread, fixed seeds, the embedded base model and random ones."""

from __future__ import annotations

import os
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share that of the process that started them
    _CACHE = tempfile.TemporaryDirectory(prefix="mos-cache-")
    os.environ["MOS_CACHE"] = _CACHE.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from PIL import Image, ImageDraw

from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.edlora import LowRank

if TYPE_CHECKING:  # the tour on other libraries has not all that the whole suite needs
    from mos_server.state.journal.postgresql import PostgreSQL
    from postgresql import Cluster
    from s3 import Bucket

torch.set_num_threads(1)
# A busy machine is no failure: no deadlines. `make test` tries the same examples every time, so
# that what passed here passes there; `make slow` and `make fuzz` look for new ones.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("MOS_HYPOTHESIS", "house"))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


SLOW_S = 7200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole federations first: their files take longest, and the others fill what is left.

    With `--dist loadfile --no-loadscope-reorder` a worker takes the next file of this order. Slow
    tests have time, also on a busy machine.
    """
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> Base:
    """The embedded base model, loaded once: tests must not change it."""
    return load_base("tiny", device="cpu")


@pytest.fixture(scope="session")
def random_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random model once per settings: `write_random_base`, or `write_random_xl_base`."""
    written: dict[tuple, Path] = {}

    def folder(**settings: object) -> Path:
        key = tuple(sorted(settings.items()))
        if key not in written:
            written[key] = tmp_path_factory.mktemp("random_base")
            if settings.get("xl"):
                write_random_xl_base(written[key], **{k: v for k, v in settings.items() if k != "xl"})
            else:
                write_random_base(written[key], **settings)
        return written[key]

    return folder


@pytest.fixture(scope="session")
def random_base(random_base_folder: Callable[..., Path]) -> Callable[..., Base]:
    """Load a random model once per settings: tests must not change it."""
    loaded: dict[tuple, Base] = {}

    def base(**settings: object) -> Base:
        key = tuple(sorted(settings.items()))
        if key not in loaded:
            loaded[key] = load_base(str(random_base_folder(**settings)), device="cpu")
        return loaded[key]

    return base


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of this test run, on loopback."""
    from postgresql import Cluster

    if not Cluster.is_installed():
        assert "CI" not in os.environ, "PostgreSQL is not installed: apt-get install postgresql"
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with Cluster.started() as running:
        yield running


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """An S3-compatible store of this test run, on loopback."""
    from s3 import Bucket

    with Bucket.served() as served:
        yield served


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | PostgreSQL:
    """Where a journal may be: in a file of `tmp_path`, or in a new database of a server."""
    if request.param == "sqlite":
        return tmp_path / "server.db"
    from mos_server.state.journal.postgresql import PostgreSQL

    cluster: Cluster = request.getfixturevalue("cluster")
    return PostgreSQL(cluster.new_database(), tmp_path)


@pytest.fixture(scope="session")
def sixteen(random_base: Callable[..., Base]) -> Base:
    """The default random model: 16 cross-attentions, epsilon, PNDM, other widths than `tiny`."""
    return random_base()


@pytest.fixture(scope="session")
def xl(random_base: Callable[..., Base]) -> Base:
    """A random model laid out like Stable Diffusion XL: two text encoders, 11 transformers."""
    return random_base(xl=True)


@pytest.fixture(params=["tiny", "sixteen"])
def base(request: pytest.FixtureRequest) -> Base:
    """Both base models, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def make_concept() -> Callable[..., Concept]:
    """Return a factory of random concepts: `make_concept(base, "<cat>", seed=1, rank=2)`."""
    return random_concept


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that fuses random concepts by their mean, with own changes beside, once."""
    from mos_common.concept_file import write_concept
    from mos_server.fusion.settings import FusionSettings
    from mos_server.models.fuse_files import fuse_files

    written: dict[tuple[str, ...], Path] = {}

    def folder(base: Base, *names: str) -> Path:
        key = (base.name, *names)
        if key not in written:
            to = tmp_path_factory.mktemp("published")
            files = [to / f"{seed}.safetensors" for seed in range(len(names))]
            for seed, (file, name) in enumerate(zip(files, names, strict=True)):
                write_concept(random_concept(base, name, seed=seed), file)
            settings = FusionSettings().changed(method="average")
            fuse_files(files, to / "fused", base=base.name, settings=settings, device="cpu", own=True)
            written[key] = to / "fused"
        return written[key]

    return folder


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., object]:
    """Return a factory of CLIP tokenizers over single letters."""
    return _tokenizer


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """Return a factory of folders of small pictures: `make_pictures(count=5, name="cat")`."""

    def folder(count: int = 5, name: str = "pictures", side: int = 64) -> Path:
        to = tmp_path / name
        to.mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", (side, side), (250, 240, 40 * i % 256))
            ImageDraw.Draw(picture).ellipse((8 + i, 8, side - 16 + i, side - 8), fill=(200, 30 * i % 256, 60))
            picture.save(to / f"{i:02}.png")
        return to

    return folder


def random_concept(
    base: Base,
    name: str = "<cat>",
    *,
    seed: int = 0,
    rank: int = 2,
    strength: float = 0.3,
    class_word: str = "cat",
    words: int = 2,
    licence: str = "",
    author: str = "",
) -> Concept:
    """Return a concept that changes every layer; `strength` is about |ΔW| / |W|."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pairs = {
        layer.name: LowRank(
            normal(rank, layer.d_in) / layer.d_in**0.5, strength * normal(layer.d_out, rank) / rank**0.5, float(rank)
        )
        for layer in base.layout.attention
    }
    embeddings = tuple(
        normal(base.layout.word_layers, words, table.shape[1]) * table.float().std() for table in base.token_tables
    )
    return Concept(
        name=name,
        class_word=class_word,
        base_fingerprint=base.fingerprint,
        pairs=pairs,
        words=embeddings if words else (),
        tool_version="a test",
        licence=licence,
        author=author,
    )


def write_random_base(
    folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", scheduler: str = "PNDMScheduler", width: int = 16
) -> None:
    """Write a narrow random model like Stable Diffusion 1.5: four levels, 16 cross-attentions."""
    import diffusers
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text_width = 24
    text_encoder = CLIPTextModel(_text_config(tokenizer, text_width))
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, width, 2 * width, 2 * width),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=text_width,
        norm_num_groups=8,
    )
    special = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {"clip_sample": False}
    steps = getattr(diffusers, scheduler)(prediction_type=prediction_type, set_alpha_to_one=False, **BETAS, **special)
    diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=steps,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_random_xl_base(folder: Path, *, seed: int = 0, width: int = 16) -> None:
    """Write a narrow random model like XL: 17 cross-attentions in 11 transformers."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = _tokenizer("<|endoftext|>"), _tokenizer("!")
    widths, pooled, of_size = (24, 32), 16, 8
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, width, 2 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=sum(widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=of_size,
        projection_class_embeddings_input_dim=pooled + 6 * of_size,
        norm_num_groups=8,
    )
    diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, widths[0])),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(tokenizer_2, widths[1], heads=4, projection_dim=pooled, hidden_act="gelu")
        ),
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
        add_watermarker=False,
    ).save_pretrained(folder)


def _text_config(tokenizer: object, width: int, heads: int = 3, projection_dim: int = 0, **more: object) -> object:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=20,
        projection_dim=projection_dim or width,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _vae() -> object:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.3,
        sample_size=16,
    )


def _tokenizer(pad: str = "!") -> object:
    """Return CLIP's tokenizer over single letters, with special tokens at unusual ids."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = ["<|endoftext|>", *letters, "<|startoftext|>", *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[("c", "a"), ("ca", "t</w>")],
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token=pad,
        model_max_length=20,
    )
