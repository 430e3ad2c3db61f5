"""The base of a federation is judged when the federation is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mos_common.errors import BaseModelError
from mos_server.cli.main import app


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("in_channels", 9, "reads 9 channels and writes 4"), ("num_class_embeds", 10, "num_class_embeds of its unet")],
)
def test_init_refuses_a_base_that_needs_other_inputs(random_base_folder, tmp_path, key, value, said):
    base = Path(shutil.copytree(random_base_folder(), tmp_path / "base"))
    file = base / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(BaseModelError, match=said):
        app(["init", str(tmp_path / "state"), "--base", str(base)], standalone_mode=False)
    assert not (tmp_path / "state").exists()
