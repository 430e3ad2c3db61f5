"""The output and exit codes of `mos-client tune`, `draw` and `inspect`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mos_common.concept_file import content_digest, read_concept, write_concept


@pytest.fixture
def concept_file(sixteen, make_concept, tmp_path) -> Path:
    write_concept(make_concept(sixteen, author="Alice"), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def refused(outcome: tuple[int, str, str], code: int, *said: str) -> None:
    """Check the exit code, and that one line begins with "error:" and contains all of `said`."""
    exit_code, out, err = outcome
    assert (exit_code, out) == (code, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    for text in said:
        assert text in line


NAMED = ("--concept", "<cat>", "--class", "cat")


def test_tune_inspect_and_draw(command, make_pictures, random_base_folder, tmp_path):
    base = ("--base", random_base_folder(), "--device", "cpu")
    code, out, err = command("tune", make_pictures(4), *NAMED, *base, "--steps", 2, "--author", "Alice")
    assert code == 0, err
    assert out.startswith("cat.safetensors (")
    assert "mos-client draw cat.safetensors 'a photo of <cat>'" in out
    assert "tuning <cat> 2/2 loss" in err
    assert {p.name for p in tmp_path.iterdir()} == {
        "cat.safetensors",
        "cat.progress.png",
        "cat.progress.json",
        "pictures",
    }

    code, out, _ = command("inspect", "cat.safetensors")
    concept = read_concept(tmp_path / "cat.safetensors")
    assert code == 0
    assert content_digest(concept) in out
    assert "concept     <cat>, a cat" in out
    assert "author      Alice" in out
    assert "embeddings.0  (16, 2, 24)  float16  1,536 bytes" in out
    assert all(f"{name}.lora_A.weight" in out and f"{name}.lora_B.weight" in out for name in concept.pairs)

    region = ("--region", "a <cat> @ 0,0,0.5,1")
    code, out, err = command("draw", "cat.safetensors", "dog", *region, *base, "--steps", 2, "--out", "a/b.png")
    assert (code, out) == (0, "a/b.png\n"), err
    with Image.open(tmp_path / "a" / "b.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (16, 16))


def test_a_missing_folder_of_pictures_is_3(command):
    refused(command("tune", "nowhere", *NAMED), 3, "no folder of pictures at nowhere")


@pytest.mark.parametrize("count", [0, 2])
def test_no_or_too_few_pictures_are_3(command, make_pictures, count):
    refused(command("tune", make_pictures(count), *NAMED), 3, f"{count} pictures in", "at least 3", ".png")


def test_an_unreadable_picture_is_3_and_named(command, make_pictures):
    folder = make_pictures(3)
    (folder / "02.png").write_text("not a picture")
    refused(command("tune", folder, *NAMED), 3, "2 pictures", "02.png cannot be read")


@pytest.mark.parametrize("name", ["cat", "<Cat>", "<a/cat>", "<>", "< cat>"])
def test_a_bad_concept_name_is_2_and_shows_a_good_one(command, make_pictures, name):
    outcome = command("tune", make_pictures(4), "--concept", name, "--class", "cat")
    refused(outcome, 2, repr(name), '"<cat>"')


def test_a_bad_flag_value_or_device_is_2(command, make_pictures, random_base_folder, concept_file):
    base = ("--base", random_base_folder())
    folder = make_pictures(4)
    refused(command("tune", folder, *NAMED, *base, "--set", "steps=0"), 2, "0 steps", "1 to 100000")
    refused(command("tune", folder, *NAMED, *base, "--set", "rang=8"), 2, "'rang'", "did you mean rank?")
    refused(command("tune", folder, *NAMED, *base, "--device", "gpu9"), 2, "--device gpu9", "--device cpu")
    refused(command("tune", folder, *NAMED, *base, "--dtype", "int4"), 2, "--dtype int4", "bfloat16")
    drawn = ("draw", concept_file, "a <cat>", *base, "--out", "a.png")
    refused(command(*drawn, "--region", "a <cat> @ 1,2"), 2, "x0,y0,x1,y1")
    refused(command(*drawn, "--region", "a <cat> @ 0,0,2,1"), 2, "from 0 to 1")
    refused(command(*drawn, "--region", "a <cat> @ no.png"), 2, "no mask at no.png", "PROMPT @ mask.png")
    refused(command(*drawn, "--layout", "no.png", "--region", "a @ red"), 2, "no painted picture at no.png")
    refused(command(*drawn, "--scene", "no.yaml"), 2, "no scene at no.yaml")
    refused(command(*drawn, "--auto-layout", "side-by-side", "--region", "a @ 0,0,1,1"), 2, "exclude each other")
    refused(command("draw", concept_file, *base, "--out", "a.png"), 2, "nothing to draw", "--scene")
    refused(command(*drawn, "--width", 17), 2, "17 x 16 pixels", "multiples of 2")
    refused(command(*drawn, "--steps", 0), 2, "0 steps")
    refused(command(*drawn, "--set", "scheduler=Nonsense"), 2, "Nonsense", "DDIMScheduler")
    refused(command(*drawn, "--set", "step=30"), 2, "'step'", "did you mean steps?")
    refused(command(*drawn, "--set", "width=17"), 2, "17 x 16 pixels")
    refused(command("draw", "nowhere", "a <cat>", "--out", "a.png"), 2, "no model at nowhere")
    refused(command("draw", concept_file, "a <dog>", *base, "--out", "a.png"), 2, "unknown concept <dog>", "<cat>")


@pytest.mark.parametrize("seed", ["99999999999999999999", "-1", "1.5", "random"])
def test_a_seed_that_is_none_is_2_in_one_line(command, make_pictures, concept_file, tmp_path, seed):
    """On every command that takes one, before anything is loaded."""
    folder = make_pictures(4)
    kit = ("join", "no.kit", folder)
    for words in (("draw", concept_file, "a <cat>", "--out", "a.png"), ("tune", folder, *NAMED), (*kit, *NAMED)):
        outcome = command(*words, "--seed", seed)
        refused(outcome, 2, f"--seed {seed}: ", "expected a whole number from 0")
        assert len(outcome[2].splitlines()) == 1


def test_a_drawing_is_set_by_flags_and_by_set(command, random_base_folder, concept_file, tmp_path):
    """Both ways give the same picture; `--set` overrides a flag."""
    drawn = ("draw", concept_file, "a <cat>", "--base", random_base_folder(), "--device", "cpu")
    flags = ("--steps", 2, "--guidance", 1, "--width", 32)
    settings = ("--set", "steps=2", "--set", "guidance=1", "--set", "width=32")
    for name, words in (("flags", flags), ("set", settings), ("both", ("--steps", 1, *settings))):
        assert command(*drawn, *words, "--out", f"{name}.png")[0] == 0
    assert (tmp_path / "flags.png").read_bytes() == (tmp_path / "set.png").read_bytes()
    assert (tmp_path / "flags.png").read_bytes() == (tmp_path / "both.png").read_bytes()


def test_a_scene_draws_what_its_flags_would_and_flags_override_it(command, random_base_folder, concept_file, tmp_path):
    """Prompt, settings, seed and regions come from the file; PROMPT, flags and --region win."""
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "scene.yaml").write_text(
        "prompt: a dog\nsteps: 2\nseed: 4\nregions:\n  - {prompt: a <cat>, mask: ../mask.png}\n"
    )
    draw = ("draw", concept_file, "--base", random_base_folder(), "--device", "cpu")
    scene, region = ("--scene", "scenes/scene.yaml"), ("--region", "a <cat> @ mask.png")
    pairs = {
        "scene": (scene, ("a dog", "--steps", 2, "--seed", 4, *region)),
        "seed": ((*scene, "--seed", 0), ("a dog", "--steps", 2, *region)),
        "prompt": (("a car", *scene, "--region", "a <cat> @ 0,0,0.5,1"),
                   ("a car", "--steps", 2, "--seed", 4, "--region", "a <cat> @ 0,0,0.5,1")),
        "auto": ((*scene, "a <cat>", "--auto-layout", "side-by-side"),
                 ("a cat", "--steps", 2, "--seed", 4, "--region", "a <cat> @ 0,0,1,1")),
    }  # fmt: skip
    pictures = {}
    for name, (from_scene, from_flags) in pairs.items():
        for way, words in (("scene", from_scene), ("flags", from_flags)):
            code, _, err = command(*draw, *words, "--out", f"{name}.{way}.png")
            assert code == 0, err
            pictures[name, way] = (tmp_path / f"{name}.{way}.png").read_bytes()
        assert pictures[name, "scene"] == pictures[name, "flags"], name
    pixels = {name: Image.open(tmp_path / f"{name}.scene.png").tobytes() for name in pairs}  # recipes differ
    assert pixels["scene"] == pixels["auto"], "a region everywhere hides the prompt"
    assert len(set(pixels.values())) == len(pairs) - 1


def test_unknown_flags_and_missing_arguments_are_2(command):
    for flags in (("--nonsense",), ("--steps", 0)):
        code, _, err = command("tune", "x", *NAMED, *flags)
        assert code == 2
        assert flags[0] in err
    assert command("tune")[0] == 2
    assert command("nonsense")[0] == 2


def test_a_base_that_is_no_diffusion_model_is_4(command, make_pictures, random_base_folder, tmp_path):
    folder = make_pictures(4)
    refused(command("tune", folder, *NAMED, "--base", folder), 4, "is not a diffusion model", "model_index.json")
    refused(command("tune", folder, *NAMED, "--base", "/nowhere/model"), 4, "no base model at /nowhere/model", "tiny")
    refused(
        command("tune", folder, *NAMED, "--base", folder / "00.png"),
        4,
        "is a picture, not a file of weights",
    )
    broken = Path(shutil.copytree(random_base_folder(), tmp_path / "broken"))
    shutil.rmtree(broken / "unet")
    refused(command("tune", folder, *NAMED, "--base", broken), 4, "has no folder unet")


def test_a_concept_file_that_cannot_be_used_is_5(command, concept_file, random_base_folder, tmp_path):
    refused(command("inspect", "nowhere.safetensors"), 5, "nowhere.safetensors cannot be read")
    (tmp_path / "noise").write_bytes(b"\x80\x04" * 100)
    refused(command("inspect", "noise"), 5, "noise is not a usable concept file")
    refused(command("draw", concept_file, "a <cat>", "--out", "a.png"), 5, "tuned on base model", "--base")


def test_an_output_that_cannot_be_written_is_9_before_any_work(
    command, make_pictures, random_base_folder, concept_file
):
    """A file is in the place of the folder, which fails for root too, as a read-only disk does."""
    base, inside = ("--base", random_base_folder()), concept_file / "inside"
    code, out, err = command("tune", make_pictures(4), *NAMED, *base, "--steps", 1, "--out", inside)
    refused((code, out, err), 9, "inside", "cannot be written")
    assert "tuning" not in err
    refused(command("draw", concept_file, "a <cat>", *base, "--out", inside), 9, "inside", "cannot be written")


def test_a_full_disk_is_9_and_says_so(command, make_pictures, random_base_folder, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = command("tune", make_pictures(4), *NAMED, "--base", random_base_folder(), "--steps", 1)
    refused(outcome, 9, "cat.safetensors", "the disk is full")


def test_ctrl_c_is_130_and_leaves_no_half_file(make_pictures, random_base_folder, tmp_path):
    """A real process, a real SIGINT, in the middle of tuning."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mos_client.cli.main import app; from mos_common.shell import run; run(app)"
    )
    words = ["tune", make_pictures(4), *NAMED, "--base", random_base_folder(), "--device", "cpu", "--steps", 5000]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if "tuning <cat>" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert not (tmp_path / "cat.safetensors").exists()


def test_the_printed_command_draws_whatever_the_names_are(command, make_pictures, random_base_folder, tmp_path):
    """The last line of `tune` runs as it is, with spaces and quotes in it and a base of its own."""
    out = "it's a cat.safetensors"
    base = ("--base", random_base_folder(), "--device", "cpu")
    code, printed, err = command("tune", make_pictures(4), *NAMED, *base, "--steps", 2, "--out", out)
    assert code == 0, err
    line = next(line for line in printed.splitlines() if "draw with it: " in line).partition("draw with it: ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").is_file()
