"""Say which concepts of a model cost others most, from its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST = 3


def worst_influences(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each of the pairs in which a concept takes the greatest part of another.

    `manifest` is the content of manifest.json. Nothing is yielded if the method computes none.
    """
    tokens = [concept["token"] for concept in manifest["concepts"]]
    taken = []
    for group, table in manifest.get("influence", {}).items():
        for j, without in enumerate(table):
            for i, kept_without in enumerate(without):
                if i != j and kept_without > 0:
                    taken.append((table[i][i] / kept_without, group, j, i, table[i][i], kept_without))
    for _, group, j, i, kept, kept_without in sorted(taken)[:MOST]:
        yield f"influence: {tokens[i]} keeps {kept:.2f} with {tokens[j]}, {kept_without:.2f} without ({group})"
