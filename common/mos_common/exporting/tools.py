"""Where other tools expect exported files, and how their prompts call the concepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import RequestError
from mos_common.exporting.shared import Credit

# What every tool takes in a file's name: A1111 reads <lora:NAME:1>, ComfyUI splits at spaces.
TOOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Tool:
    """A program that loads exports.

    `places` maps formats to folders of the program's own. `call` is how its prompts name the file
    of a word; `lora` what a prompt or its command line says to load a LoRA.
    """

    title: str
    places: Mapping[str, str]
    call: str = "{name}"
    lora: str = ""


TOOLS = {
    "comfyui": Tool(
        "ComfyUI",
        {"lora": "models/loras", "words": "models/embeddings", "single-file": "models/checkpoints"},
        call="embedding:{name}",
    ),
    "a1111": Tool(
        "A1111 or Forge",
        {"lora": "models/Lora", "words": "embeddings", "single-file": "models/Stable-diffusion"},
        lora=" <lora:{stem}:1>",
    ),
    "kohya": Tool("kohya's gen_img.py", {}),
    "diffusers": Tool("diffusers", {}),
}


def tool_named(name: str) -> Tool:
    """Return a tool by its name.

    Raises:
        RequestError: it is unknown; the message lists the known ones.

    """
    if name not in TOOLS:
        raise RequestError(f"--for {name} is not known: choose one of {', '.join(TOOLS)}")
    return TOOLS[name]


def check_stem(out: Path, tool: Tool) -> None:
    """Check that a tool's prompts can name the file.

    Raises:
        RequestError: the name has other characters.

    """
    if not TOOL_NAME.fullmatch(out.stem):
        raise RequestError(
            f"--out {out}: {tool.title} calls the file by its name, {out.stem!r}; "
            "use letters, digits, dots, - and _ only, such as alice-cat.safetensors"
        )


def called(credit: Credit, tool: Tool | None, file: Path | None) -> str:
    """Return the text by which prompts call a concept; without a tool, as diffusers does.

    `file` is its textual inversion; None for a concept without words of its own.
    """
    if file is None:
        return credit.called or credit.token
    return credit.token if tool is None or tool is TOOLS["diffusers"] else tool.call.format(name=file.stem)


def prompt_for(credits: Sequence[Credit], tool: Tool | None, inversions: Mapping[str, Path]) -> str:
    """Return an example prompt that draws the first concept."""
    return f"a photo of {called(credits[0], tool, inversions.get(credits[0].token))}" if credits else "a photo"


def instructions(kind: str, out: Path, inversions: Mapping[str, Path], prompt: str, tool: Tool) -> list[str]:
    """Return lines that say where the files go in a tool, and what to type there."""
    if tool is TOOLS["kohya"]:
        return [_of_kohya(kind, out, inversions, prompt)]
    places = [(out, tool.places[kind])] if kind != "words" else []
    places += [(file, tool.places["words"]) for file in inversions.values()]
    lora = tool.lora.format(stem=out.stem) if kind == "lora" else ""
    return [
        *(f"{file}: for {tool.title} copy it to {place}/{file.name}" for file, place in places),
        f"prompt there: {prompt}{lora}",
    ]


def _of_kohya(kind: str, out: Path, inversions: Mapping[str, Path], prompt: str) -> str:
    files = {
        "lora": ["--network_module", "networks.lora", "--network_weights", str(out)],
        "single-file": ["--ckpt", str(out)],
    }
    words = ["--textual_inversion_embeddings", *map(str, inversions.values())] if inversions else []
    return f"in kohya's scripts: {shlex.join(['gen_img.py', *files.get(kind, []), *words, '--prompt', prompt])}"
