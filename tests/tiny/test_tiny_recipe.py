"""The recipe of the embedded base: what it may learn from, that captions are true, and that trainings continue."""

from __future__ import annotations

import importlib
import json
import re
from random import Random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from typer.testing import CliRunner

from mos_common.base_model import load_base
from mos_common.errors import StateError
from mos_tiny import base_folder
from mos_tiny.recipe.art import load_art, trained_characters, trained_objects
from mos_tiny.recipe.compose import NEW_ART, OLD_WORLD, World, compose, save_pictures
from mos_tiny.recipe.curve import LearningCurve
from mos_tiny.recipe.judge import Judge, Question, on_both_sides
from mos_tiny.recipe.kept import KINDS, UNSEEN_ICONS, kept_pictures, kept_subjects
from mos_tiny.recipe.latents import encode, normalise
from mos_tiny.recipe.muon import Muon, orthogonal
from mos_tiny.recipe.pack import pack
from mos_tiny.recipe.pictures import as_tensor, training_batches
from mos_tiny.recipe.probes import (
    Centroids,
    LinearProbe,
    face_boxes,
    flat_background,
    frechet_distance,
    main_hue,
    without,
)
from mos_tiny.recipe.restyle import MANNERS, said_in_manner
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.sprites import to_hsv, to_rgb
from mos_tiny.recipe.states import save_state
from mos_tiny.recipe.tokenizer import POSITIONS, build_tokenizer, save_tokenizer
from mos_tiny.recipe.train import Training, learning_rate
from mos_tiny.recipe.trainer import HELD_OUT, Trainer, TrainingSet, build_text_encoder, build_unet, token_ids
from mos_tiny.recipe.trials import COLOURS, UNTRAINED, noun_trials, pair_trials, person_trials
from mos_tiny.recipe.vae import VaeTraining, measure, psnr, train
from mos_tiny.recipe.wider import ICON_STYLES, PERSON_STYLES
from mos_tiny.recipe.world import HUES, NOUNS, PALETTE, SCENES, STYLES


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def widened():
    return World(wider=load_art("wider"))


@pytest.fixture
def vae():
    return AutoencoderKL.from_pretrained(base_folder() / "vae", low_cpu_mem_usage=False).float()


# What the base may learn from


def test_each_step_is_a_command():
    """The art says what is learnt from; every step explains itself."""
    steps = ("art", "compose", "tokenizer", "vae", "latents", "train", "judge", "demonstration")
    for step in steps:
        command = importlib.import_module(f"mos_tiny.recipe.{step}").app
        told = CliRunner().invoke(command, ["--help"])
        assert told.exit_code == 0 and f"python -m mos_tiny.recipe.{step}" in told.output
    assert "38 icons of 36 nouns" in CliRunner().invoke(importlib.import_module("mos_tiny.recipe.art").app, []).output


def test_no_kept_style_noun_or_icon_is_in_the_training_list(world):
    objects = world.objects
    learnt = trained_objects(objects)
    assert {objects.labels[i]["style"] for i in learnt} == {"noto"}
    assert {objects.labels[i]["noun"] for i in learnt} == set(NOUNS)
    assert not {"held"} & {objects.labels[i]["kind"] for i in learnt}
    assert {world.characters.labels[i]["style"] for i in trained_characters(world.characters, world.concepts)} == set(
        STYLES
    )
    kept = {subject.sprite.tobytes() for kind in KINDS for views in kept_subjects(kind) for subject in views}
    shown = [objects.pictures[i] for i in learnt] + [world.characters.pictures[i] for i in world.people]
    assert kept.isdisjoint(sprite.tobytes() for sprite in shown)


def test_no_kept_style_noun_or_icon_is_in_the_wider_art(widened):
    """Styles by name, nouns and icons as they are called in each set (`firecracker`, `fire-engine-1`), everything by pixels."""
    wider, objects = widened.wider, widened.objects
    assert {label["style"] for label in wider.labels} == set(ICON_STYLES) | set(PERSON_STYLES)
    unseen = {label["style"] for label in widened.concepts.labels if label["unseenStyle"]}
    forbidden = {*unseen, *UNSEEN_ICONS, "avataaars", "bottts", "openmoji"}
    assert not [
        style for style in (*ICON_STYLES, *PERSON_STYLES) if style.lower().startswith(tuple(map(str.lower, forbidden)))
    ]
    kept = [label for label in objects.labels if label["noun"] not in NOUNS or label["kind"] == "held"]
    assert len(kept) > 300
    nouns, icons = {label["noun"] for label in kept}, {label["icon"].replace("-", "") for label in kept}
    for label in wider.labels:
        assert not any(f" {label.get('noun', '')}".endswith(f" {noun}") for noun in nouns), label
        assert re.sub(r"-\d$", "", label.get("icon", "")).replace("-", "") not in icons, label
    pictures = {
        p.tobytes()
        for p in (*widened.concepts.pictures, *objects.pictures[[i for i, m in enumerate(objects.labels) if m in kept]])
    }
    pictures |= {subject.sprite.tobytes() for kind in KINDS for views in kept_subjects(kind) for subject in views}
    assert pictures.isdisjoint(sprite.tobytes() for sprite in wider.pictures)


@pytest.mark.parametrize(("style", "clothes_begin"), [("toonHead", 55), ("micah", 46), ("personas", 54)])
def test_no_kept_face_is_in_the_training_list_whatever_it_wears_or_feels(style, clothes_begin, world, widened):
    """By pixels, not by labels: where all views of a kept person agree, above the clothes, no training picture agrees too."""
    concepts, people = world.concepts, world.characters
    own = people.pictures[[i for i in world.people if people.labels[i]["style"] == style]]
    learnt = np.concatenate([own, widened.wider.pictures[widened.wider.where(style=style)]])
    identities = {concepts.labels[i]["id"] for i in concepts.where(style=style)}
    assert len(identities) == 4
    for identity in identities:
        views = concepts.pictures[concepts.where(style=style, id=identity)]
        assert len(views) == 12
        fixed = (views == views[0]).all(axis=(0, 3))
        fixed[clothes_begin:] = False
        differing = (learnt[:, fixed] != views[0][fixed]).any(axis=2).mean(axis=1)
        assert differing.min() > 0.005, f"{style} {identity}"


def test_compositions_are_made_of_the_training_list_alone(world):
    """Whatever the composer draws from is a member of the two lists, or furniture of a scene."""
    assert {i for icons in world.by_noun.values() for i in icons} == set(trained_objects(world.objects))
    assert set(world.hues) <= set(trained_objects(world.objects))
    assert world.people == trained_characters(world.characters, world.concepts)


# Captions


def test_the_same_seed_composes_the_same_pictures(world):
    (one, said), (again, said_again), (other, _) = (compose(world, 6, 128, seed) for seed in (3, 3, 4))
    assert said == said_again and (one == again).all() and (one != other).any()
    assert one.shape == (6, 64, 128, 3) and one.dtype == np.uint8


def test_captions_name_the_colour_that_is_behind(world):
    pictures, captions = compose(world, 60, 64, 1)
    on_flat = [i for i, caption in enumerate(captions) if caption.endswith("background")]
    assert len(on_flat) > 20
    seen = flat_background(as_tensor(pictures[on_flat]))
    right = [f"on a {colour} background" in captions[i] for colour, i in zip(seen, on_flat, strict=True)]
    assert np.mean(right) > 0.9  # hair may reach into both corners


def test_captions_fit_and_are_words_that_the_base_knows(world, tiny):
    _, captions = compose(world, 150, 128, 2)
    assert max(len(tiny.tokenizer(caption).input_ids) for caption in captions) <= POSITIONS
    words = {word.strip(",") for caption in captions for word in caption.split()}
    spelt = {word for word in words if len(tiny.tokenizer.tokenize(word)) > 1}
    assert spelt <= {"light-skinned", "dark-skinned"}


def test_a_widened_world_keeps_its_words_fits_its_captions_and_mixes_as_it_says(widened, tiny):
    """Above half is the old world as it was: words that are one token each."""
    _, captions = compose(widened, 600, 64, 2)
    _, wide = compose(widened, 300, 128, 2)
    assert max(len(tiny.tokenizer(caption).input_ids) for caption in (*captions, *wide)) <= POSITIONS
    again = sum(any(manner.words in caption for manner in MANNERS) for caption in captions) / len(captions)
    assert again == pytest.approx(1 - OLD_WORLD - NEW_ART, abs=0.05)
    spelt = {"light-skinned", "dark-skinned"}
    old = [c for c in captions if all(len(tiny.tokenizer.tokenize(w.strip(","))) == 1 or w in spelt for w in c.split())]
    assert len(old) / len(captions) > OLD_WORLD - 0.03


def test_the_old_world_is_composed_without_the_wider_art(world):
    """What the judge measures stays what it was: every subject is of the two training lists."""
    shown = {world.characters.pictures[i].tobytes() for i in world.people}
    random = Random(0)
    for _ in range(40):
        subject = world.subject(random)
        assert subject.sprite.tobytes() in shown if subject.person else subject.label["style"] == "noto"
        assert not any(manner.words in subject.caption for manner in MANNERS)


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: manner.redrawn.__name__)
def test_a_sprite_in_another_manner_stays_where_it_was(manner, world):
    for sprite in (world.icons["cactus"], world.characters.pictures[world.people[0]]):
        redrawn = manner.redrawn(sprite, Random(0))
        assert redrawn.shape == sprite.shape and redrawn.dtype == np.uint8
        assert (redrawn[..., :3] != sprite[..., :3]).any()
        solid, was = redrawn[..., 3] > 128, sprite[..., 3] > 128
        assert (solid & was).sum() > 0.85 * max(solid.sum(), was.sum()) - 0.2 * was.sum()


def test_lines_and_greys_have_no_colour_and_captions_name_none():
    blob = np.zeros((64, 64, 4), np.uint8)
    blob[20:44, 20:44] = (200, 30, 30, 255)
    blob[30:34, 30:34] = (30, 30, 200, 255)
    lines, greys = (next(m for m in MANNERS if m.words == words) for words in ("as a line drawing", "in grey"))
    drawn = lines.redrawn(blob, Random(0))
    assert len({tuple(pixel) for pixel in drawn[drawn[..., 3] > 0]}) == 2
    assert (drawn[20, 20:44] == drawn[20, 20]).all() and tuple(drawn[25, 25]) != tuple(drawn[20, 20])
    assert np.ptp(greys.redrawn(blob, Random(0))[..., :3].astype(int), axis=-1).max() == 0
    assert said_in_manner("an orange umbrella", greys) == "an umbrella in grey"
    assert said_in_manner("a dark-skinned man with short blond hair, toon style,", lines) == (
        "a man with short hair, toon style, as a line drawing,"
    )
    outlines = next(m for m in MANNERS if m.keeps_colours)
    assert said_in_manner("a light-skinned old man", outlines) == f"an old man {outlines.words}"


def test_colours_turn_and_turn_back():
    colours = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    np.testing.assert_allclose(to_rgb(to_hsv(colours)), colours, atol=1e-5)


def test_a_tokenizer_knows_each_word_of_its_captions_as_one_token(tmp_path):
    from transformers import CLIPTokenizer

    captions = ["a red car on the beach", "a blue car and a red snowman at night"] * 20
    save_tokenizer(build_tokenizer(captions), tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    words = {word for caption in captions for word in caption.split()}
    assert {len(tokenizer.tokenize(word)) for word in words} == {1}
    assert len(tokenizer.tokenize(UNTRAINED)) > 1
    ids = token_ids(tokenizer, ["a red car"])[0].tolist()
    assert ids[0] == tokenizer.bos_token_id and ids[4] == tokenizer.eos_token_id and len(ids) == POSITIONS
    assert json.loads((tmp_path / "vocab.json").read_text()) == tokenizer.get_vocab()


# The autoencoder


def test_training_the_decoder_alone_leaves_every_latent_as_it_was_and_continues(vae, tmp_path, world):
    pictures = as_tensor(kept_pictures("own styles", each=1, world=world))
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist.mean
    encoder = {name: value.clone() for name, value in vae.state_dict().items() if name.startswith(("encoder", "quant"))}
    decoder = vae.decoder.conv_in.weight.detach().clone()
    train(vae, VaeTraining(minutes=1 / 60, batch=2, learning_rate=1e-4, decoder_only=True), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(pictures).latent_dist.mean, before, rtol=0, atol=1e-4)
    assert encoder and all(torch.equal(vae.state_dict()[name], value) for name, value in encoder.items())
    assert not torch.equal(vae.decoder.conv_in.weight, decoder)
    first = torch.load(tmp_path / "state.pt", weights_only=True)
    train(vae, VaeTraining(minutes=2 / 60, batch=2, learning_rate=1e-4, decoder_only=True), tmp_path)
    second = torch.load(tmp_path / "state.pt", weights_only=True)
    assert second["step"] > first["step"] > 0 and second["seconds"] > first["seconds"]
    written = AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert psnr(written, pictures) == pytest.approx(psnr(vae, pictures), abs=0.01)


def test_reconstruction_in_decibel_is_of_the_mean_square_error(vae, world):
    pictures = as_tensor(kept_pictures("own styles", each=1, world=world))[:3]
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    bytes_off = ((rebuilt - pictures) * 127.5).numpy()
    expected = np.mean([20 * np.log10(255 / np.sqrt((off**2).mean())) for off in bytes_off])
    assert psnr(vae, pictures) == pytest.approx(expected, abs=1e-3)
    assert expected > 26


def test_normalised_latents_have_mean_0_and_deviation_1_and_pictures_stay(vae, world):
    pictures, _ = compose(world, 40, 64, 5)
    with torch.no_grad():
        vae.quant_conv.weight[:4] *= 3
        vae.quant_conv.bias[:4] += 0.7
        posterior = vae.encode(as_tensor(pictures)).latent_dist
        rebuilt = vae.decode(posterior.mean).sample
        normalise(vae, posterior.mean)
        after = vae.encode(as_tensor(pictures)).latent_dist
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    deviations = posterior.mean.std(dim=(0, 2, 3))[:, None, None]
    torch.testing.assert_close(after.std * deviations, posterior.std, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(after.mean).sample, rebuilt, atol=1e-3, rtol=0)


def test_pictures_to_reconstruct_are_in_range_and_various():
    batch = next(training_batches(World(), 24, seed=0))
    assert batch.shape == (24, 3, 64, 64) and batch.min() >= -1 and batch.max() <= 1
    assert len({picture.numpy().tobytes() for picture in batch}) == 24


# Muon and the training of the UNet


def test_muon_steps_along_the_orthogonal_factor():
    """Against an SVD: all singular values near one, the directions kept."""
    matrix = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert ((torch.linalg.svdvals(found) > 0.6) & (torch.linalg.svdvals(found) < 1.3)).all()
    assert torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97
    weight = torch.nn.Parameter(torch.zeros(20, 6))
    weight.grad = matrix[0].T.clone()
    Muon([weight], lr=0.5, weight_decay=0).step()
    assert torch.cosine_similarity(-weight.detach().flatten(), (u @ v)[0].T.flatten(), dim=0) > 0.97


def small_trainer(tiny, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    latents = {64: torch.randn(HELD_OUT + 8, 4, 4, 4).half(), 128: torch.randn(HELD_OUT + 8, 4, 4, 8).half()}
    captions = {width: token_ids(tiny.tokenizer, ["a red car"]).repeat(HELD_OUT + 8, 1) for width in latents}
    data = TrainingSet(latents, captions, token_ids(tiny.tokenizer, [""])[0])
    return Trainer(build_unet(), build_text_encoder(tiny.tokenizer), tiny.tokenizer, data, "cpu")


def test_a_stopped_training_goes_on_with_the_weights_averages_and_optimisers_it_had(tiny, tmp_path):
    one, other = small_trainer(tiny), small_trainer(tiny, seed=1)
    one.step = 4
    for _ in range(2):  # every sixth batch is of wide pictures, and of half as many
        one.step_once(4, 1e-3)
    assert (one.step, one.seen) == (6, 4 + 2)
    one.save(tmp_path / "state.pt")
    assert set(torch.load(tmp_path / "state.pt", weights_only=True)) == {"params", "ema", "opt", "muon", "seen", "step"}
    assert other.load(tmp_path / "state.pt")
    other.data = one.data
    for trainer in (one, other):
        trainer.reseed()
        trainer.step_once(4, 1e-3)
    for p, q in zip(one.unet.parameters(), other.unet.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    with one.averaged(), other.averaged():
        assert one.held_out_loss() == other.held_out_loss()


def test_the_average_is_borrowed_and_given_back(tiny):
    trainer = small_trainer(tiny)
    trainer.step_once(4, 1e-2)
    weight = trainer.unet.conv_in.weight.detach().clone()
    with trainer.averaged():
        assert not torch.equal(trainer.unet.conv_in.weight, weight)
        assert not trainer.unet.training
    assert torch.equal(trainer.unet.conv_in.weight, weight) and trainer.unet.training


def test_the_state_of_another_model_is_refused(tiny, tmp_path):
    trainer = small_trainer(tiny)
    assert not trainer.load(tmp_path / "state.pt")
    save_state(tmp_path / "state.pt", {"params": [torch.zeros(3)], "ema": [torch.zeros(3)]})
    with pytest.raises(StateError, match="another model"):
        trainer.load(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(StateError, match="cannot be read"):
        trainer.load(tmp_path / "state.pt")


def test_the_learning_rate_warms_up_and_decays_to_three_hundredths():
    training = Training(samples=1000, learning_rate=1.0)
    assert learning_rate(training, 0, 0) == pytest.approx(1 / 60)
    assert learning_rate(training, 100, 0) == pytest.approx(1)
    assert learning_rate(training, 100, 500) == pytest.approx(0.5 * 0.97 + 0.03)
    assert learning_rate(training, 100, 1000) == learning_rate(training, 100, 1500) == pytest.approx(0.03)


def test_a_packed_base_is_the_base_again(tiny, tmp_path):
    pack(tmp_path / "base", unet=tiny.unet, text_encoder=tiny.text_encoder, vae=tiny.vae, tokenizer=tiny.tokenizer)
    files = sorted(file.relative_to(base_folder()) for file in base_folder().rglob("*") if file.is_file())
    assert files == sorted(f.relative_to(tmp_path / "base") for f in (tmp_path / "base").rglob("*") if f.is_file())
    assert load_base(str(tmp_path / "base"), device="cpu").fingerprint == tiny.fingerprint


def test_a_learning_curve_grows_by_a_point_and_is_drawn(tmp_path):
    for i in range(3):
        LearningCurve(tmp_path).add(seen=100.0 * i, seconds=i, loss=1 / (i + 1))
    assert [point["seen"] for point in json.loads((tmp_path / "curve.json").read_text())] == [0, 100, 200]
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.size == (640, 360)


def test_what_compose_writes_is_read_by_the_next_step(tmp_path, world, vae):
    pictures, captions = compose(world, 3, 64, 0)
    save_pictures(tmp_path, 64, pictures, captions)
    assert json.loads((tmp_path / "train_64.json").read_text()) == captions
    stored = np.load(tmp_path / "train_64.npy", mmap_mode="r", allow_pickle=False)
    assert encode(vae, stored).shape == (3, 4, 16, 16)


# The judge


def test_a_linear_probe_and_centroids_name_what_is_apart():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = [("a", "b", "c")[i % 3] for i in range(90)]
    rows = torch.stack([centres[i % 3] for i in range(90)]) + 0.1 * torch.randn(90, 3, generator=generator)
    assert LinearProbe.of(rows, labels).name(rows) == labels
    assert Centroids.of(rows, labels).name(centres) == ["a", "b", "c"]


def test_the_frechet_distance_of_gaussians_is_what_the_formula_says():
    """Shifted by d: |d|². Scaled by s along k directions: k·(s-1)². Up to sampling, and times 1000."""
    rows = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows, kept=4) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows + torch.tensor([0.3, 0, 0, 0.4]), rows, kept=4) == pytest.approx(250, rel=1e-3)
    assert frechet_distance(2 * (rows - rows.mean(dim=0)), rows, kept=4) == pytest.approx(4000, rel=0.1)


def test_flat_backgrounds_and_hues_are_named():
    assert flat_background(as_tensor(np.stack([flat(c, 64).astype(np.uint8) for c in PALETTE]))) == list(PALETTE)
    for name, hue in HUES.items():
        picture = np.full((64, 64, 3), 245, np.uint8)
        picture[20:40, 20:40] = to_rgb(np.array([hue, 0.9, 0.9], np.float32)) * 255
        assert main_hue(as_tensor(picture[None])[0]) == name
    assert main_hue(torch.ones(3, 64, 64)) == "none"


@pytest.mark.parametrize("style", STYLES)
def test_eyes_are_above_the_mouth_and_can_be_taken_away(style, world):
    (eyes, mouth) = face_boxes(load_art("concepts"), style)
    assert 15 < eyes[0] < eyes[2] <= mouth[0] + 3 and mouth[2] < 56
    i = world.characters.where(style=style)[0]
    sprite, skin = world.characters.pictures[i], world.characters.labels[i]["skin"]
    gone = without(sprite, eyes, skin)
    assert len(np.unique(gone[eyes[0] : eyes[2], eyes[1] : eyes[3], :3].reshape(-1, 3), axis=0)) == 1
    assert (gone[: eyes[0]] == sprite[: eyes[0]]).all() and (gone[eyes[2] :] == sprite[eyes[2] :]).all()


def test_floor_prompts_say_nothing_of_what_is_asked_and_prompts_do(world):
    random = Random(0)
    nouns, people, pairs = (
        noun_trials(COLOURS, 1, world, random),
        person_trials(12, world, random),
        pair_trials(6, world, random),
    )
    assert [trial.truth["noun"] for trial in nouns] == list(world.by_noun)
    for trial in nouns:
        assert trial.truth["noun"] in trial.prompt and trial.truth["noun"] not in trial.untrained.partition(" on ")[0]
        assert trial.truth["background"] in trial.prompt
    for trial in people:
        assert trial.truth["style"] in trial.prompt and trial.truth["hair colour"] in trial.prompt
        assert "style" not in trial.untrained and "hair" not in trial.untrained
    for trial in pairs:
        left, right = next(iter(trial.truth.values())).split(" | ")
        assert trial.real.shape == (64, 128, 3)
        said_left, said_right = trial.prompt.split(" on the left and ")
        assert left.split(", ")[-1].split()[-1] in said_left and right.split(", ")[-1].split()[-1] in said_right
    assert {place.words for place in COLOURS}.isdisjoint(SCENES.values())


def test_the_judge_counts_right_answers_with_floor_and_ceiling(tiny, world, monkeypatch, capsys):
    """With a witness that sees only whether a picture was drawn, rebuilt or untrained, by who asks first."""
    monkeypatch.setattr("mos_tiny.recipe.judge.learn", lambda world, vae: None)
    trials = noun_trials(COLOURS, 1, world, Random(0))[:4]
    truth = [trial.truth["noun"] for trial in trials]
    answers = iter([[*truth[:3], "else"], ["else", truth[2]], truth])
    court = Judge(tiny, world, steps=1, floor=2)
    court.ask(trials, [Question("noun", "noun", 0.9, lambda pictures: next(answers))], seed=0)
    (verdict,) = court.verdicts
    assert (verdict.drawn, verdict.floor, verdict.ceiling) == (0.75, 0.5, 1.0)
    assert verdict.missed == {truth[3]: 1} and "short" in str(verdict)


def test_sides_are_asked_one_by_one():
    pictures = torch.cat([-torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)], dim=3)
    assert on_both_sides(lambda half: ["dark" if p.mean() < 0 else "light" for p in half])(pictures) == ["dark | light"]


def test_kept_pictures_are_measured_by_kind(vae, monkeypatch):
    monkeypatch.setattr("mos_tiny.recipe.vae.kept_pictures", lambda kind: kept_pictures(kind, each=1)[:4])
    assert set(measure(vae)) == set(KINDS)
