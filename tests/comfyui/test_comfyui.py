"""A real ComfyUI, headless, draws by its HTTP API what the command draws.

    MOS_COMFYUI=FOLDER MOS_COMFYUI_PYTHON=ENVIRONMENT/bin/python pytest tests/comfyui -q

FOLDER is a checkout of ComfyUI, ENVIRONMENT has its requirements and this repository installed.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request as Call
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from comfyui.conftest import FILE
from mos_client.drawing.picture import draw_picture
from mos_common import Box, Drawing, Region

FOLDER = os.environ.get("MOS_COMFYUI", "")
PYTHON = os.environ.get("MOS_COMFYUI_PYTHON", sys.executable)
MOST = 2  # of 255: ComfyUI cuts values to bytes where we round them
START_S, DRAW_S = 300, 300
pytestmark = pytest.mark.skipif(not FOLDER, reason="MOS_COMFYUI names no folder of ComfyUI")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Start ComfyUI with nothing but our nodes; its address on loopback."""
    home = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (home / name).mkdir()
    (home / "custom_nodes" / FILE.name).symlink_to(FILE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    words += ["--base-directory", str(home), "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen([PYTHON, *words], cwd=FOLDER, stdout=log, stderr=log, env=environment)
        try:
            yield _answering(f"http://127.0.0.1:{port}", server, home / "log")
        finally:
            server.terminate()
            server.wait(60)


def _answering(address: str, server: subprocess.Popen, log: Path) -> str:
    for _ in range(START_S):
        if server.poll() is not None:
            break
        try:
            got(address, "/system_stats")
            return address
        except URLError:
            time.sleep(1)
    pytest.fail(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")


def got(address: str, path: str, **asked: str) -> bytes:
    with urlopen(f"{address}{path}?{urlencode(asked)}", timeout=60) as answer:
        return answer.read()


def drawn_by_comfyui(address: str, graph: dict) -> list[np.ndarray]:
    """Queue a graph, wait for it, and fetch the pictures of its node "save"."""
    call = Call(f"{address}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(call, timeout=60) as answer:
            number = json.load(answer)["prompt_id"]
    except HTTPError as error:
        pytest.fail(error.read().decode())
    for _ in range(DRAW_S * 2):
        history = json.loads(got(address, f"/history/{number}")).get(number)
        if history:
            break
        time.sleep(0.5)
    else:
        pytest.fail("ComfyUI has not drawn it in time")
    assert history["status"]["status_str"] == "success", json.dumps(history["status"], indent=1)
    images = history["outputs"]["save"]["images"]
    return [np.asarray(Image.open(io.BytesIO(got(address, "/view", **image)))) for image in images]


def graph_of(model: Path, prompt: str, regions: list[dict], **how: object) -> dict:
    told = {"negative": "", "seed": 3, "steps": 4, "guidance": 0.0, "width": 0, "height": 0, "count": 1}
    told |= {"scheduler": "the base's own", "own": "auto", **how}
    loading = {"model": str(model), "base": "tiny", "device": "auto", "dtype": "auto", "offload": False, "kit": ""}
    graph: dict = {
        "load": {"class_type": "MixOfShowModel", "inputs": loading},
        "draw": {"class_type": "MixOfShowDraw", "inputs": {"model": ["load", 0], "prompt": prompt, **told}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["draw", 0], "filename_prefix": "mos"}},
    }
    for number, region in enumerate(regions):
        graph[f"region {number}"] = {"class_type": "MixOfShowRegion", "inputs": dict(region)}
        into = graph["draw"] if number == len(regions) - 1 else graph.setdefault("later", {"inputs": {}})
        if number:
            graph[f"region {number}"]["inputs"]["regions"] = [f"region {number - 1}", 0]
        into["inputs"]["regions"] = [f"region {number}", 0]
    graph.pop("later", None)
    return graph


SIDES = ("left", "top", "right", "bottom")
BOXES = [("a <cat>", (0.0, 0.0, 0.5, 1.0), {"edge": 0.1}), ("a <dog>", (0.5, 0.0, 1.0, 1.0), {"negative": "red"})]


@pytest.mark.parametrize(
    ("prompt", "placed", "how", "by_command"),
    [
        ("a <cat>", [], {}, {}),
        ("a <cat>", [], {"own": "off", "count": 2}, {"own": False, "seeds": (3, 4)}),
        ("a place", BOXES, {"width": 128}, {"width": 128}),
        ("a woman on the beach", [], {"guidance": 5.0, "negative": "red"}, {"guidance": 5.0, "negative": "red"}),
    ],
    ids=["a concept by its own changes", "by the fused model, two", "regions", "no concept"],
)
def test_comfyui_draws_what_the_command_draws(address, model, tmp_path, prompt, placed, how, by_command):
    regions = [{"prompt": text, **dict(zip(SIDES, box, strict=True)), **more} for text, box, more in placed]
    pictures = drawn_by_comfyui(address, graph_of(model, prompt, regions, **how))
    own, seeds = by_command.pop("own", True), by_command.pop("seeds", (3,))
    told = [Region(text, Box(*box), **more) for text, box, more in placed]
    drawing = Drawing(steps=4, **by_command)
    files = draw_picture(
        model, prompt, tmp_path / "x.png", how=drawing, regions=told, own=own, seeds=seeds, device="cpu"
    )
    assert len(pictures) == len(seeds)
    for picture, file in zip(pictures, files, strict=False):
        most = int(np.abs(picture.astype(int) - np.asarray(Image.open(file)).astype(int)).max())
        print(f"{prompt}: at most {most}/255")
        assert most <= MOST


def test_a_model_that_is_not_there_is_refused_before_anything_runs(address, tmp_path):
    graph = graph_of(tmp_path / "nowhere", "a cat", [])
    call = Call(f"{address}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"})
    with pytest.raises(HTTPError) as refused:
        urlopen(call, timeout=60)
    assert "there is nothing at" in refused.value.read().decode()
