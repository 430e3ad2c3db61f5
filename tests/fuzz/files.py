"""Every reader of files that a person gives or gets, with good files to start from."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from fuzz.reader import LAYER, SEPARATOR, Reader, fitting_concept, miniature, parts
from mos_client.importing.import_files import import_files
from mos_client.pictures.captions import read_captions
from mos_client.pictures.captions_table import read_caption_table
from mos_client.pictures.reading import read_mask, read_picture
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.concept_file import concept_to_bytes, read_concept
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept, read_fused
from mos_common.kit import read_kit
from mos_common.node_key import KEY, NONCE, SIGNATURE, TIME, CallVerifier, create_node_key, sign_call
from mos_common.safe_reading import open_weights
from mos_server.fusion.fuse import fuse
from mos_server.models.publish import write_fused
from reference.small_fusion import SETTINGS

KOHYA = "lora_" + LAYER.replace(".", "_")


def concept_file(_folder: Path) -> Reader:
    """A participant's concept file, which the server reads."""
    return Reader("cat.safetensors", (concept_to_bytes(small_concept()),), read_concept)


def small_concept(fingerprint: str = "ab" * 32) -> Concept:
    """Return a concept of two layers."""
    pairs = {
        LAYER: LowRank(torch.randn(2, 5), torch.randn(3, 2), 2.0),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": LowRank(torch.randn(1, 4), torch.randn(4, 1), 3.0),
    }
    return Concept("<cat>", "cat", fingerprint, pairs, (torch.randn(3, 2, 4),), "a test", "CC0", "Alice")


def kit(_folder: Path) -> Reader:
    """A kit, as it came by post."""
    fields = {
        "base": "ab" * 32, "base_name": "tiny", "ca": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
        "expires": "2030-01-01T00:00:00Z", "fleet": "127.0.0.1:9092", "mos": "127.0.0.1:9093", "name": "alice",
        "server_id": "0" * 32, "signing_key": "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n",
        "token": "t" * 43,
    }  # fmt: skip
    return Reader("alice.kit", (json.dumps(fields).encode(), json.dumps(fields).encode("utf-16")), read_kit)


def manifest(folder: Path) -> Reader:
    """The manifest of a model folder from somewhere, beside good files."""
    fused_model(miniature(folder), folder / "fused")
    good = (folder / "fused" / "manifest.json").read_bytes()

    def read(file: Path) -> object:
        (folder / "fused" / "manifest.json").write_bytes(file.read_bytes())
        return read_fused(folder / "fused")

    return Reader("manifest.json", (good,), read)


def fused_model(base: Base, folder: Path) -> None:
    """Write a fused model of one concept."""
    write_fused(fuse(base, [NamedConcept("alice", fitting_concept(base))], SETTINGS), folder)


def captions(_folder: Path) -> Reader:
    """A caption beside a picture."""
    return Reader("cat.txt", (b"a photo of V, outside\nV", "ein Foto von <TOK>".encode("utf-16")), read_captions)


def caption_table(_folder: Path) -> Reader:
    """The `metadata.jsonl` of a folder of pictures."""
    rows = b'{"file_name": "cat.png", "text": "a photo of V"}\n{"file_name": "dog.png", "caption": ["V", "two"]}\n'
    return Reader("metadata.jsonl", (rows,), read_caption_table)


def caption_sheet(_folder: Path) -> Reader:
    """The `metadata.csv` of a folder of pictures."""
    return Reader("metadata.csv", (b'file_name,text\ncat.png,"a photo of V, outside"\n',), read_caption_table)


def picture(_folder: Path) -> Reader:
    """A picture of any format."""
    drawn = Image.linear_gradient("L").resize((24, 24)).convert("RGB")
    kinds = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
    return Reader("cat.png", tuple(_saved(drawn, kind) for kind in kinds), read_picture)


def mask(_folder: Path) -> Reader:
    """The mask of a picture."""
    drawn = Image.linear_gradient("L").resize((24, 24))
    seeds = tuple(_saved(drawn.convert(mode), "PNG") for mode in ("L", "RGBA", "P", "1"))
    return Reader("cat.mask.png", seeds, lambda file: read_mask(file, (24, 24)))


def _saved(drawn: Image.Image, kind: str) -> bytes:
    held = io.BytesIO()
    drawn.save(held, kind)
    return held.getvalue()


def lora(folder: Path) -> Reader:
    """A LoRA of another tool."""
    factors = {"lora_down.weight": torch.randn(2, 32), "lora_up.weight": torch.randn(32, 2), "alpha": torch.tensor(2.0)}
    tensors = {f"{KOHYA}.{name}": value for name, value in factors.items()}
    told = {"ss_tag_frequency": json.dumps({"3_cat": {"sks cat": 3}}), "ss_network_dim": "2"}
    peft = {f"base_model.model.{LAYER.removeprefix('unet.')}.lora_A.weight": factors["lora_down.weight"],
            f"base_model.model.{LAYER.removeprefix('unet.')}.lora_B.weight": factors["lora_up.weight"]}  # fmt: skip
    return Reader("cat.safetensors", (save(tensors, told), save(peft)), _importing(folder))


def embedding(folder: Path) -> Reader:
    """A textual inversion of another tool, as safetensors."""
    seeds = (save({"emb_params": torch.randn(2, 24)}), save({"<cat>": torch.randn(2, 24)}))
    return Reader("cat.safetensors", seeds, _importing(folder))


def pickled(folder: Path) -> Reader:
    """A textual inversion or a LoRA that `torch.save` wrote."""
    held = io.BytesIO()
    torch.save({"string_to_param": {"*": torch.randn(2, 24)}, "name": "cat"}, held)
    return Reader("cat.pt", (held.getvalue(), stored(held.getvalue())), _importing(folder))


def stored(data: bytes) -> bytes:
    """Return a zip of the same files without compression or padding, shorter to change."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as read, zipfile.ZipFile(held, "w") as write:
        for name in read.namelist():
            write.writestr(name, read.read(name))
    return held.getvalue()


def adapter_config(folder: Path) -> Reader:
    """The configuration beside a LoRA of PEFT."""
    fields = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_k"], "bias": "none",
        "rank_pattern": {"mid_block.*": 2}, "alpha_pattern": {}, "use_rslora": False, "layers_to_transform": None,
        "target_parameters": None, "lora_dropout": 0.0, "init_lora_weights": True,
    }  # fmt: skip
    beside, importing = folder / "peft", _importing(folder)
    beside.mkdir()
    name = f"base_model.model.{LAYER.removeprefix('unet.')}"
    weights = {f"{name}.lora_A.weight": torch.randn(2, 32), f"{name}.lora_B.weight": torch.randn(32, 2)}
    (beside / "adapter_model.safetensors").write_bytes(save(weights))

    def read(file: Path) -> object:
        (beside / "adapter_config.json").write_bytes(file.read_bytes())
        return importing(beside)

    pattern = fields | {"target_modules": r".*mid_block.*\.to_(q|k)", "layers_to_transform": [0], "layers_pattern": "x"}
    return Reader("adapter_config.json", (json.dumps(fields).encode(), json.dumps(pattern).encode()), read)


def _importing(folder: Path) -> Callable[[Path], object]:
    base = miniature(folder)
    return lambda file: import_files(
        [file], concept="<cat>", class_word="cat", base=base, out=folder / "imported.safetensors", report=str
    )


def checkpoint(_folder: Path) -> Reader:
    """The weights of a base that a trainer saved as a pickle."""
    held = io.BytesIO()
    torch.save({"state_dict": {"model.diffusion_model.out.0.weight": torch.randn(4)}, "global_step": 3}, held)
    return Reader("model.ckpt", (held.getvalue(), stored(held.getvalue())), open_weights)


def signed_call(folder: Path) -> Reader:
    """The metadata and the request of a call of `mos.v1`."""
    from mos_common import mos_pb2

    request = mos_pb2.FetchRequest(model="round-001", file="manifest.json", offset=3)
    key = create_node_key(folder / "node_key")
    metadata = dict(sign_call(key, "Fetch", request))
    said: list[Any] = [metadata[name] for name in (KEY, TIME, NONCE, SIGNATURE)]
    seed = SEPARATOR.join(part if isinstance(part, bytes) else str(part).encode() for part in said)

    def read(file: Path) -> object:
        given = parts(file.read_bytes(), 4)[:4]
        names = ((KEY, bytes), (TIME, str), (NONCE, str), (SIGNATURE, bytes))
        called = [
            (name, value if kind is bytes else value.decode("ascii", "ignore"))
            for (name, kind), value in zip(names, given, strict=True)
        ]
        return CallVerifier(lambda _key: True).verify(called, "Fetch", request)

    return Reader("call", (seed,), read)


MAKERS: Mapping[str, Callable[[Path], Reader]] = {
    "concept": concept_file,
    "kit": kit,
    "manifest": manifest,
    "captions": captions,
    "caption_table": caption_table,
    "caption_sheet": caption_sheet,
    "picture": picture,
    "mask": mask,
    "lora": lora,
    "embedding": embedding,
    "pickled": pickled,
    "adapter_config": adapter_config,
    "checkpoint": checkpoint,
    "signed_call": signed_call,
}
