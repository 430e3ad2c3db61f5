"""From the hub only what is loaded; without it, what its cache holds.

The file lists of the three repositories were written down from their pages and documentation (July
2026); nothing was fetched to make them.
"""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from mos_common.base_hub import needed_files
from mos_common.base_model import load_base
from mos_common.errors import BaseModelError

FORMATS = (".bin", ".fp16.bin", ".safetensors", ".fp16.safetensors")
TOKENIZER = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
TOP = [".gitattributes", "README.md", "model_index.json", "feature_extractor/preprocessor_config.json"]


def tokenizer(part: str) -> list[str]:
    return [f"{part}/{name}" for name in TOKENIZER]


def text_encoder(*suffixes: str) -> list[str]:
    names = [("pytorch_model" if s.endswith("bin") else "model") + s for s in suffixes]
    return ["text_encoder/config.json", *(f"text_encoder/{name}" for name in names)]


def part(name: str, *suffixes: str) -> list[str]:
    return [f"{name}/config.json", *(f"{name}/diffusion_pytorch_model{s}" for s in suffixes)]


SD15 = [  # stable-diffusion-v1-5/stable-diffusion-v1-5
    *TOP,
    *(f"safety_checker/{n}" for n in ("config.json", "model.fp16.safetensors", "model.safetensors")),
    *("safety_checker/pytorch_model.bin", "safety_checker/pytorch_model.fp16.bin", "scheduler/scheduler_config.json"),
    *text_encoder(*FORMATS),
    *tokenizer("tokenizer"),
    *part("unet", *FORMATS, ".non_ema.bin", ".non_ema.safetensors"),
    *("v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors"),
    "v1-inference.yaml",
    *part("vae", *FORMATS),
]
SD21 = [  # stabilityai/stable-diffusion-2-1
    *TOP,
    "scheduler/scheduler_config.json",
    *text_encoder(*FORMATS),
    *tokenizer("tokenizer"),
    *part("unet", *FORMATS),
    *(f"v2-1_768-{kind}-pruned.{suffix}" for kind in ("ema", "nonema") for suffix in ("ckpt", "safetensors")),
    *part("vae", *FORMATS),
]
FOREIGN = ("model.onnx", "model.onnx_data", "openvino_model.bin", "openvino_model.xml")
XL_BASE = [  # stabilityai/stable-diffusion-xl-base-1.0
    *(".gitattributes", "01.png", "LICENSE.md", "README.md", "comparison.png", "model_index.json", "pipeline.png"),
    "scheduler/scheduler_config.json",
    *("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors"),
    "sd_xl_offset_example-lora_1.0.safetensors",
    *(f"{p}/{n}" for p in ("text_encoder", "text_encoder_2") for n in ("config.json", "flax_model.msgpack", *FOREIGN)),
    *(f"{p}/model{s}" for p in ("text_encoder", "text_encoder_2") for s in (".safetensors", ".fp16.safetensors")),
    *tokenizer("tokenizer"),
    *tokenizer("tokenizer_2"),
    *part("unet", ".safetensors", ".fp16.safetensors"),
    *(f"unet/{name}" for name in ("diffusion_flax_model.msgpack", *FOREIGN)),
    *part("vae", ".safetensors", ".fp16.safetensors"),
    "vae/diffusion_flax_model.msgpack",
    *part("vae_1_0", ".safetensors", ".fp16.safetensors"),
    *(f"{p}/{n}" for p in ("vae_decoder", "vae_encoder") for n in ("config.json", *FOREIGN)),
]
OF_ONE_ENCODER = {
    *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"),
    *("text_encoder/model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *tokenizer("tokenizer"),
}
OF_TWO = OF_ONE_ENCODER | {
    *("text_encoder_2/config.json", "text_encoder_2/model.safetensors"),
    *tokenizer("tokenizer_2"),
}


@pytest.mark.parametrize(
    ("listed", "needed"), [(SD15, OF_ONE_ENCODER), (SD21, OF_ONE_ENCODER), (XL_BASE, OF_TWO)], ids=["1.5", "2.1", "XL"]
)
def test_of_well_known_repositories_one_copy_of_each_part_is_fetched(listed, needed):
    """No checkpoint, averaged or half-precision copy, safety checker, Flax, ONNX or OpenVINO."""
    assert set(needed_files("owner/model", listed)) == needed


def test_a_repository_of_bin_files_only_is_fetched_whole():
    """Repositories of 2022 have no safetensors."""
    listed = [name for name in SD15 if not name.endswith(".safetensors")]
    needed = set(needed_files("owner/model", listed))
    weights = {"text_encoder/pytorch_model.bin", *(f"{p}/diffusion_pytorch_model.bin" for p in ("unet", "vae"))}
    assert {name for name in needed if name.endswith(".bin")} == weights
    assert len(needed) == len(OF_ONE_ENCODER)


def test_a_repository_of_fp16_only_and_one_in_shards_are_fetched():
    half = [name for name in SD15 if ".safetensors" not in name or ".fp16." in name]
    half = [name for name in half if not name.endswith(".bin")]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in needed_files("owner/model", half)
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    others = [name for name in SD21 if not name.startswith("unet/")]
    assert {*shards, index} <= set(needed_files("owner/model", [*others, "unet/config.json", *shards, index]))


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["README.md", "ponyDiffusion.safetensors"], r"download one of its checkpoints \(ponyDiffusion.safetensors\)"),
        (["README.md"], "give the id of a model in diffusers' layout"),
        ([name for name in SD15 if not name.startswith("vae/d")], "owner/model/vae has no whole set of weights"),
    ],
)
def test_what_is_no_base_is_refused_before_anything_is_fetched(listed, said):
    with pytest.raises(BaseModelError, match=said):
        needed_files("owner/model", listed)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as serves one repository, from a folder, and notes what was asked for."""

    folder: Path
    asked: list[str]
    commit = "0" * 40

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        names = sorted(str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file())
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            content = (self.folder / name).read_bytes()
            if body:
                self.asked.append(name)
        elif "/tree/" in path:
            files = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in names]
            content = json.dumps(files).encode()
        elif path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": name, "size": (self.folder / name).stat().st_size} for name in names]
            content = json.dumps({"id": "owner/model", "sha": self.commit, "siblings": siblings}).encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{abs(hash(path)):x}"')
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(random_base_folder, tmp_path, cache, monkeypatch):
    """A hub on this machine with the random base, twice, and a checkpoint beside it."""
    folder = Path(shutil.copytree(random_base_folder(), tmp_path / "served"))
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shutil.copy(unet, folder / "model.ckpt")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"folder": folder, "asked": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_in_part_and_then_found_without_it(hub, sixteen, monkeypatch):
    assert load_base("owner/model", device="cpu").fingerprint == sixteen.fingerprint
    asked = hub.RequestHandlerClass.asked
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    assert not {name for name in asked if "fp16" in name or name.endswith(".ckpt")}
    asked.clear()
    hub.shutdown()
    hub.server_close()
    assert load_base("owner/model", device="cpu").fingerprint == sixteen.fingerprint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_base("owner/model", device="cpu").fingerprint == sixteen.fingerprint
    assert asked == []


def test_a_model_that_the_hub_does_not_have_is_named(hub):
    with pytest.raises(BaseModelError, match=r"no base model at owner/other: there is no such folder, and the hub"):
        load_base("owner/other")


def test_without_a_network_the_way_on_is_said(cache, monkeypatch):
    with pytest.raises(BaseModelError, match=r"no base model at owner/model.*HF_HUB_OFFLINE.*give its folder"):
        load_base("owner/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BaseModelError, match=r"owner/model.*cannot be reached.*give its folder"):
        load_base("owner/model")


def test_what_was_fetched_in_part_only_says_what_is_missing(random_base_folder, cache):
    """A download that was interrupted: the UNet's weights are not there."""
    folder = cache / "models--owner--model" / "snapshots" / Hub.commit
    shutil.copytree(random_base_folder(), folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    with pytest.raises(BaseModelError, match=r"(unet|vae) has no whole set of weights.*none at all"):
        load_base("owner/model")


def test_the_hub_s_library_is_asked_as_it_documents():
    """The names that the test server replaces exist, so a new version of the library shows."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        assert hasattr(huggingface_hub.constants, name)
