"""Small cases of other merge methods, from their published code: `tests/data/rival_cases.json`.

The code is not in this repository. To make the file again, check out each repository at its commit
(`SOURCES`) into one folder, each under its name, and run

    python tests/reference/rival_cases.py FOLDER tests/data/rival_cases.json

Inputs are whole tenths from a fixed generator and stand in the file with the results, in float32.
"""

from __future__ import annotations

import ast
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DATA = Path(__file__).parents[1] / "data" / "rival_cases.json"
SOURCES = {
    "iso-c": {
        "repository": "https://github.com/danielm1405/iso-merging",
        "commit": "d34010af8ba129ef4d17a91ca9943b413fe06f8c",
        "licence": "Apache-2.0",
        "file": "src/utils/iso.py",
        "ran": "iso_c",
    },
    "tsv-m": {
        "repository": "https://github.com/AntoAndGar/task_singular_vectors",
        "commit": "a6c97188f7aa0bb20753de4f2939be89dd64f1c3",
        "licence": "Apache-2.0",
        "file": "src/utils/TSVM_utils.py",
        "ran": "compute_and_sum_svd_mem_reduction",
    },
    "ssr-merge": {
        "repository": "https://github.com/nagara214/SSR-Merge",
        "commit": "09dff73569063c2a06e23e7caef2578e68c46415",
        "licence": "Apache-2.0",
        "file": "ssr_merge/core.py",
        "ran": "SSRMerger",
    },
    "loraclr": {
        "repository": "https://github.com/enisimsar/LoRACLR",
        "commit": "93e34e089b9e65145126017cdef431de9aae24ce",
        "licence": "MIT",
        "file": "weight_fusion.py",
        "ran": "update_contrastive",
    },
}
D_OUT, D_IN = 5, 6


def case(name: str) -> dict[str, Any]:
    """Return a stored case: lists of numbers as tensors, in float64."""
    return {key: _tensors(value) for key, value in json.loads(DATA.read_bytes())[name].items() if key != "source"}


def _tensors(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], list) and not isinstance(value[0][0], list):
        return torch.tensor(value, dtype=torch.float64)
    return [_tensors(each) for each in value] if isinstance(value, list) else value


def matrices(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    """Return matrices of whole tenths from -1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-10, 11, shape, generator=generator) / 10 for shape in shapes]


def published(checkouts: Path, name: str) -> Any:
    """Return the function or class that `SOURCES` names; only its own file is read."""
    source = SOURCES[name]
    text = (checkouts / source["repository"].rpartition("/")[2] / source["file"]).read_text(encoding="utf-8")
    if name != "loraclr":
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(text, source["file"], "exec"), module.__dict__)
        return getattr(module, source["ran"])
    (function,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == source["ran"]]
    names = {"torch": torch, "F": nn.functional, "logging": logging}
    exec(compile(ast.Module([function], []), source["file"], "exec"), names)
    return names[source["ran"]]


def iso_c(run: Any) -> dict[str, Any]:
    """Three changes of rank 2, whose sum has full rank."""
    B, A = matrices(1, *[(D_OUT, 2)] * 3), matrices(2, *[(2, D_IN)] * 3)
    tasks = [types.SimpleNamespace(vector={"weight": b @ a}) for b, a in zip(B, A, strict=True)]
    merged = run(tasks, types.SimpleNamespace(device="cpu"))["weight"]
    return {"B": B, "A": A, "merged": merged}


def tsv_m(run: Any) -> dict[str, Any]:
    """Two changes of rank 3, of which each keeps 2."""
    B, A = matrices(3, *[(D_OUT, 3)] * 2), matrices(4, *[(3, D_IN)] * 2)
    tasks = [types.SimpleNamespace(vector={"weight": b @ a}) for b, a in zip(B, A, strict=True)]
    merged = run(tasks, types.SimpleNamespace(device="cpu", DATASETS=["one", "other"]))["weight"]
    return {"B": B, "A": A, "merged": merged}


def ssr_merge(run: Any) -> dict[str, Any]:
    """Concepts of ranks 2 and 3, each recorded on eight rows of its own."""
    B, A = matrices(5, (D_OUT, 2), (D_OUT, 3)), matrices(6, (2, D_IN), (3, D_IN))
    X, ridge, layer = matrices(7, (8, D_IN), (8, D_IN)), 0.01, nn.Linear(D_IN, D_OUT)
    merger = run([{"layer": (a, b)} for a, b in zip(A, B, strict=True)], lambda_reg=ridge)
    merger.attach({"layer": layer})
    for k, rows in enumerate(X):
        merger.set_active_task(k)
        layer(rows)
    merger.detach()
    down, up = merger.solve()["layer"]
    return {"B": B, "A": A, "X": X, "ridge": ridge, "merged": up @ down}


def loraclr(run: Any) -> dict[str, Any]:
    """Three concepts of four rows each, with a margin that not all of them keep."""
    (W0,), changes = matrices(8, (D_OUT, D_IN)), [each / 10 for each in matrices(9, *[(D_OUT, D_IN)] * 3)]
    (shared,), apart = matrices(10, (4, D_IN)), matrices(11, *[(4, D_IN)] * 3)
    X = [shared + each / 10 for each in apart]
    settings = {"margin": 1.5, "lambda_mse": 0.1, "lambda_reg": 0.001, "lambda_con": 1.0, "lr": 1e-3}
    pairs = [(rows, rows @ (W0 + change).T) for rows, change in zip(X, changes, strict=True)]
    merged = run(pairs, W0, 50, "cpu", settings)
    return {"W0": W0, "changes": changes, "X": X, "iterations": 50, **settings, "merged": merged - W0}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [[float(f"{number:.7g}") for number in row] for row in value.tolist()]
    return [_plain(each) for each in value] if isinstance(value, list) else value


def main(checkouts: Path, to: Path) -> None:
    """Run the published code on every case and write the file."""
    made = {}
    for name, make in {"iso-c": iso_c, "tsv-m": tsv_m, "ssr-merge": ssr_merge, "loraclr": loraclr}.items():
        values = {key: _plain(value) for key, value in make(published(checkouts, name)).items()}
        made[name] = {"source": SOURCES[name], **values}
    to.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
