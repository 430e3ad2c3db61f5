"""The output and exit codes of `mos-client check`, `import` and `leakage`."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mos_common.concept_file import read_concept, write_concept

K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {f"{K}.lora_down.weight": torch.ones(2, 32), f"{K}.lora_up.weight": torch.ones(32, 2)}


NAMED = ("--concept", "<cat>", "--class", "cat")


def test_check_prints_what_it_found_and_writes_the_sheet(command, make_pictures, tmp_path):
    """The report on the folder, then the judgement of a tuning: its memory and its minutes."""
    folder = make_pictures(5)
    (folder / "01.txt").write_text("V " + "in the grass " * 40)
    code, out, err = command("check", folder)
    assert code == 0, err
    assert out.startswith(f"{folder}: 5 usable pictures\n")
    *_, sheet, remark, memory, minutes, last = out.splitlines()
    assert sheet == "contact sheet: check.png"
    assert "01.txt: longer than the 54 tokens" in remark
    assert memory.startswith("memory: about ")
    assert "300 steps of " in minutes
    assert last == "nothing speaks against tuning on it"
    with Image.open(tmp_path / "check.png") as sheet:
        assert sheet.format == "PNG"


def test_check_of_too_few_pictures_is_3_and_of_masks_without_a_class_2(command, make_pictures, tmp_path):
    folder = make_pictures(2)
    code, out, err = command("check", folder)
    assert code == 3
    assert "2 usable pictures" in out
    assert "at least 3" in err
    code, _, err = command("check", folder, "--masks-with", tmp_path)
    assert code == 2
    assert "--class" in err
    code, _, err = command("check", folder, "--masks-with", tmp_path, "--class", "cat")
    assert code in (2, 3)
    assert len(err.strip().splitlines()) == 1


def test_check_judges_what_tune_would(command, make_pictures, random_base_folder, tmp_path):
    """The same flags, the same refusals, the same exit codes; nothing is tuned."""
    folder, base = make_pictures(4), ("--base", random_base_folder(), "--device", "cpu")
    tuned = ("--concept", "<cat>", "--class", "cat", "--steps", 2)
    for flags, expected, text in (
        (("--vram", "nan"), 2, "--vram nan: expected a finite number from 0.1"),
        (("--set", "rank=99"), 2, "rank 99 is larger than layer"),
        (("--set", "seed=-1"), 2, "--set seed -1: other tools take it for a random seed"),
        (("--class", "<dog>"), 5, "names a concept"),
    ):
        for words in (("check", folder, *base, *tuned, *flags), ("tune", folder, *base, *tuned, *flags)):
            code, _, err = command(*words)
            assert (code, text in err) == (expected, True), (words, err)
    (folder / "00.txt").write_text("a " * 30 + "V")
    for words in (("check", folder, *base, *tuned), ("tune", folder, *base, *tuned)):
        code, _, err = command(*words)
        assert code == 3
        assert "00.txt: the concept is named only after the 18 tokens" in err
    assert not list(tmp_path.glob("*.safetensors"))


def test_import_writes_a_concept_file_and_says_how_it_is_called(command, random_base_folder, tmp_path):
    save_file(PAIR, tmp_path / "lora.safetensors")
    base = ("--base", random_base_folder())
    code, out, err = command("import", "lora.safetensors", *NAMED, *base, "--trigger", "sks", "--author", "Alice")
    assert (code, out) == (0, "cat.safetensors: 1 layers, called 'sks'\n"), err
    concept = read_concept(tmp_path / "cat.safetensors")
    assert (concept.trigger, concept.author, concept.name) == ("sks", "Alice", "<cat>")
    save_file({"emb_params": torch.ones(3, 24)}, tmp_path / "ti.safetensors")
    code, out, err = command("import", "lora.safetensors", "ti.safetensors", *NAMED, *base, "--rank", 1)
    assert (code, out) == (0, "cat.safetensors: 1 layers, 3 words\n"), err
    assert [pair.rank for pair in read_concept(tmp_path / "cat.safetensors").pairs.values()] == [1]


def test_what_cannot_be_imported_is_one_line_and_5(command, random_base_folder, tmp_path):
    save_file({**PAIR, f"{K}.dora_scale": torch.ones(32)}, tmp_path / "dora.safetensors")
    code, out, err = command("import", "dora.safetensors", *NAMED, "--base", random_base_folder())
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (5, "")
    assert f"{K}.dora_scale is DoRA" in line
    assert not (tmp_path / "cat.safetensors").exists()


def test_leakage_prints_every_picture_the_score_and_what_it_means(
    command, make_concept, make_pictures, random_base_folder, sixteen, tmp_path
):
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    base = ("--base", random_base_folder(), "--device", "cpu")
    code, out, err = command("leakage", "cat.safetensors", make_pictures(4), *base)
    assert code == 0, err
    for text in ("tuned on  00.png", "never seen  03.png", "membership score", "proves nothing about other attacks"):
        assert text in out
    code, _, err = command("leakage", "nowhere.safetensors", tmp_path / "pictures", *base)
    assert code == 5
    assert "nowhere.safetensors cannot be read" in err


def test_check_refuses_a_base_that_is_not_complete(command, make_pictures, random_base_folder, tmp_path):
    base = Path(shutil.copytree(random_base_folder(), tmp_path / "base"))
    weights = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_in.weight"]
    save_file(weights, base / "vae" / "diffusion_pytorch_model.safetensors")
    code, _, err = command("check", make_pictures(5), "--base", base)
    assert code == 4
    assert "its vae misses decoder.conv_in.weight. The base is incomplete or damaged: download it again" in err
    assert len(err.strip().splitlines()) == 1
