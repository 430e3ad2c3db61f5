"""Write concepts' own spatial changes beside a fused model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save

from mos_common.base_model import Base
from mos_common.base_names import short_name
from mos_common.concept_file import content_digest
from mos_common.digests import digest_of_bytes
from mos_common.edlora import LowRank
from mos_common.files import canonical_json, replacing_folder, write_atomically
from mos_common.fused_model import ADAPTER, File, FusedModel, NamedConcept
from mos_common.layers import Group
from mos_common.model_files import MANIFEST
from mos_common.own.folder import OwnManifest
from mos_common.own.names import beside, folder_name
from mos_common.rotation import SigningKey


@dataclass(frozen=True)
class OwnFiles:
    """The two files of one concept's own changes."""

    adapter: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """By which the fused model names them."""
        return digest_of_bytes(self.manifest)


def own_files(named: NamedConcept, base: Base) -> OwnFiles:
    """Return the files of a concept's own spatial changes: the same for the same concept."""
    spatial = [layer.name for layer in base.layout.by_group[Group.SPATIAL] if layer.name in named.concept.pairs]
    tensors = {}
    for name in sorted(spatial):
        pair = named.concept.pairs[name]
        tensors[f"{name}.lora_A.weight"] = pair.A.contiguous()
        tensors[f"{name}.lora_B.weight"] = _scaled(pair).contiguous()
    adapter = save(tensors)
    manifest = OwnManifest(
        base=base.fingerprint,
        base_name=short_name(base.name),
        token=named.token,
        digest=content_digest(named.concept),
        licence=named.concept.licence,
        author=named.concept.author,
        files={ADAPTER: File(size=len(adapter), sha256=digest_of_bytes(adapter))},
    )
    return OwnFiles(adapter, canonical_json(manifest.model_dump(mode="json")) + b"\n")


def with_own(fused: FusedModel, own: Mapping[str, OwnFiles]) -> FusedModel:
    """Return a fused model whose manifest names the own changes of its concepts, by token."""
    concepts = [
        concept.model_copy(update={"own": own[concept.token].digest}) if concept.token in own else concept
        for concept in fused.manifest.concepts
    ]
    return replace(fused, manifest=fused.manifest.model_copy(update={"concepts": concepts}))


def write_own(model: Path, own: Mapping[str, OwnFiles], key: SigningKey | None = None) -> None:
    """Write own changes beside `model`, each in its folder, signed by `key` if there is one.

    Whatever lay there is replaced: a model's manifest says which it means.

    Raises:
        StateError: they cannot be written.

    """
    from mos_common.signing import sign_model

    with replacing_folder(beside(model)) as folder:
        for token, files in sorted(own.items()):
            to = folder / folder_name(token)
            write_atomically(to / ADAPTER, files.adapter)
            write_atomically(to / MANIFEST, files.manifest)
            if key is not None:
                sign_model(to, key)


def _scaled(pair: LowRank) -> torch.Tensor:
    """Return B with the pair's scale in it, in the pair's own number format where that is exact."""
    return pair.B if pair.scale == 1 else (pair.scale * pair.B.float()).to(torch.float32)
