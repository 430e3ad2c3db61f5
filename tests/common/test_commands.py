"""Commands that messages print: they run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mos_common.commands import command_line, draw_command

SHOW = "import sys; print(ascii(sys.argv[1:]))"
HARD = ["plain", "two words", "it's", '"quoted"', "<alice/cat> & $HOME", "é", "a;b", "*", ""]


@pytest.mark.parametrize("word", HARD)
def test_a_shell_passes_each_word_on_as_it_is(word):
    command = command_line(sys.executable, "-c", SHOW, word)
    printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    assert printed.stdout == f"[{word!a}]\n"


def test_a_path_that_looks_like_a_flag_is_still_a_path():
    assert command_line("mos-client", "inspect", Path("-cat.safetensors")) == "mos-client inspect ./-cat.safetensors"
    assert command_line("mos-client", "round", "--cancel") == "mos-client round --cancel", "flags stay flags"


def test_the_base_is_named_unless_it_is_tiny():
    assert draw_command(Path("fused"), "a <cat>", "tiny") == "mos-client draw fused 'a <cat>' --out picture.png"
    assert "--base 'my base'" in draw_command(Path("fused"), "a <cat>", "my base")
