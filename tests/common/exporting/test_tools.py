"""`--for`: where the files go in another tool, and what to type there."""

from __future__ import annotations

import shlex

import pytest
import torch

from mos_common.concept import words_of
from mos_common.concept_file import read_concept, write_concept
from mos_common.drawing import Drawing, draw, initial_noise
from mos_common.edlora import attached


@pytest.fixture
def source(make_concept, tmp_path):
    def write(base):
        write_concept(make_concept(base, "<cat>", strength=0.05), tmp_path / "concept.safetensors", torch.float32)
        return tmp_path / "concept.safetensors"

    return write


@pytest.mark.parametrize(
    ("tool", "title", "lora", "words", "prompt"),
    [
        ("comfyui", "ComfyUI", "models/loras", "models/embeddings", "a photo of embedding:alice.cat"),
        ("a1111", "A1111 or Forge", "models/Lora", "embeddings", "a photo of alice.cat <lora:my-cats:1>"),
    ],
)
def test_a_tool_is_told_the_places_and_the_prompt(folder, quickly, tiny, tmp_path, tool, title, lora, words, prompt):
    """With --for, the default format is a LoRA."""
    out = tmp_path / "my-cats.safetensors"
    inversions = [tmp_path / "my-cats.words" / f"{name}.safetensors" for name in ("alice.cat", "bob.dog")]
    assert quickly(folder, tiny, None, out, tool=tool)[2:] == [
        f"{out}: for {title} copy it to {lora}/my-cats.safetensors",
        *(f"{file}: for {title} copy it to {words}/{file.name}" for file in inversions),
        f"prompt there: {prompt}",
    ]


def test_a_checkpoint_has_another_place_and_no_lora_in_its_prompt(folder, quickly, tiny, tmp_path):
    lines = quickly(folder, tiny, "single-file", tmp_path / "all.safetensors", tool="a1111")
    assert "models/Stable-diffusion/all.safetensors" in lines[2]
    assert lines[-1] == "prompt there: a photo of alice.cat"


def test_kohya_gets_a_command_line_that_a_shell_can_read(source, quickly, tiny, tmp_path):
    out = tmp_path / "my folder" / "cat.safetensors"
    *_, line = quickly(source(tiny), tiny, None, out, tool="kohya")
    title, _, command = line.partition(": ")
    assert title == "in kohya's scripts"
    inversion = out.with_suffix(".words") / "cat.safetensors"
    assert shlex.split(command) == [
        *["gen_img.py", "--network_module", "networks.lora", "--network_weights", str(out)],
        *["--textual_inversion_embeddings", str(inversion), "--prompt", "a photo of cat"],
    ]


def test_a_word_is_called_by_its_file_where_that_has_another_name(source, quickly, tiny, tmp_path):
    *_, line = quickly(source(tiny), tiny, "words", tmp_path / "my-cat.safetensors", tool="comfyui")
    assert line == "prompt there: a photo of embedding:my-cat"


@pytest.mark.parametrize(
    ("kind", "format"),
    [("tiny", "lora"), ("tiny", "single-file"), ("tiny", "diffusers"), ("like_2", "single-file"), ("xl", "lora")],
)
def test_the_lines_for_diffusers_draw_what_we_draw(kind, format, request, source, quickly, tmp_path):
    """The printed lines are run; then the same noise becomes the same picture."""
    base, out = request.getfixturevalue(kind), tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    more = {} if format == "diffusers" else {"dtype": "float32"}
    lines = quickly(source(base), base, format, out, tool="diffusers", **more)
    first = next(i for i, line in enumerate(lines) if line.startswith("from diffusers"))
    prompt = "a photo of a cat" if format == "diffusers" else "a photo of <cat>"
    assert lines[-1].endswith("images[0]")
    names: dict[str, object] = {}
    exec("\n".join(lines[first:-1]), names)
    pipeline, how = names["pipeline"], Drawing(steps=2)
    pipeline.set_progress_bar_config(disable=True)
    height, width = how.sized_for(base)
    theirs = pipeline(
        prompt,
        latents=initial_noise(base, [3], height, width),
        num_inference_steps=how.steps,
        guidance_scale=base.preset.guidance,
        height=height,
        width=width,
        output_type="pt",
    ).images[0]
    concept = read_concept(source(base))
    vocabulary = {"<cat>": words_of(concept, base).mean(dim=0, keepdim=True)}
    with attached(base, concept.pairs):
        ours = draw(base, [prompt], [3], vocabulary=vocabulary, how=how)[0]
    torch.testing.assert_close(theirs * 2 - 1, ours, rtol=0, atol=5e-3)
