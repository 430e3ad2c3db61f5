"""Texts that people write by hand, made to do harm: YAML, scenes, boxes."""

from __future__ import annotations

import json

import yaml


def yamls(_good: bytes) -> dict[str, bytes]:
    """Texts that grow when they are written out, nest, or call something."""
    laughs = "".join(f"  a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
    laughing = f"x:\n  a0: &a0 lol\n{laughs}model:\n  params:\n    parameterization: *a9\n"
    made = {
        "a billion laughs": laughing,
        "a list in itself": "model:\n  params:\n    parameterization: &a [*a]\n",
        "an object in itself": "model: &a\n  params: *a\n",
        "deep lists": "[" * 50_000,
        "deep objects": "{a: " * 50_000,
        "lists of lists": "- " * 8000,
        "keys of keys": "? " * 8000,
        "a few lists": "[" * 150 + "]" * 150,
        "indented": "".join(" " * n + "a:\n" for n in range(2000)),
        "a call": "!!python/object/apply:os.system ['exit']",
        "a call within": "model:\n  params:\n    parameterization: !!python/name:os.system\n",
        "a date that is none": "model:\n  params:\n    parameterization: 2001-99-99\n",
        "a long number": "model:\n  params:\n    parameterization: " + "9" * 100_000,
        "sixties": "model:\n  params:\n    parameterization: " + "1:" * 50_000 + "1",
        "merges": "a0: &a0 {k: v}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(25)),
        "a binary": "model: !!binary AAAA\n",
        "a set": "model: !!set {params}\n",
        "keys that are lists": "? [a, b]\n: c\n",
        "documents": "---\na: 1\n" * 10_000,
        "comments": "#\n" * 1_000_000,
    }
    return {name: text.encode() for name, text in made.items()}


def scenes(good: bytes) -> dict[str, bytes]:
    """Scenes of every kind of YAML that harms, and regions that name what is not theirs."""
    made, content = yamls(good), yaml.safe_load(good)
    values = (None, [], {}, -1, 2**70, 1e308, "nan", ".inf", "", "a" * 50_000, "../../etc/passwd", "/dev/zero", True)
    for name in content["regions"][0] | content["regions"][1] | content["regions"][2]:
        for value in (*values, [0, 0, 1, 1, 1], [1, 1, 0, 0], ["a"] * 4, [[0] * 4] * 4, "\u202e"):
            changed = content | {"regions": [content["regions"][0] | {name: value}]}
            made[f"{name} of a region is {str(value)[:18]!r}"] = json.dumps(changed).encode()
    made["33 regions"] = json.dumps(content | {"regions": content["regions"][:1] * 33}).encode()
    made["32 masks"] = json.dumps(content | {"regions": content["regions"][1:2] * 32}).encode()
    return made


def as_json(good: bytes) -> bytes:
    """Return a scene of YAML as JSON, which is YAML too."""
    return json.dumps(yaml.safe_load(good)).encode()


def regions(_good: bytes) -> dict[str, bytes]:
    """Boxes that are none."""
    numbers = ("nan", "inf", "-1", "1e400", "9" * 100_000, "0x1", "1_0", "\u0661", "", "0" * 100_000)
    made = {f"a side at {number[:9]!r}": f"<cat> @ 0,{number},1,1".encode() for number in numbers}
    for name in ("x" * 5000 + ".png", "a\0.png", "/dev/zero", "/proc/self/mem", "..", "~", "\u202e.png", "\udcff.png"):
        made[f"a mask called {name[:12]!r}"] = f"<cat> @ {name}".encode("utf-8", "surrogateescape")
    return made | {"a million boxes": b"<cat> @ 0,0,1,1" * 100_000, "commas": b"@" + b"," * 1_000_000}
