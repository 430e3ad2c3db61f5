"""Other people's merges of the same concepts, as honest as they can be made: what every claim is measured against.

Each returns the changes of a merged model by layer, as gradient fusion does.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import words_of
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, adaptable_layers, cross_attentions, word_layer_numbers
from mos_common.prompts import about
from mos_common.words import encode_token_ids, tokenise
from mos_server.fusion.activations import position_weights
from mos_server.fusion.settings import ROWS
from mos_server.fusion.solve import refactored, stacked_left

PAPER_PROMPTS = ("photo of a V", "V")
# Of the mean second moment of ordinary text: some hundred rows do not span the width of a text encoder.
DAMPING = 1e-4


def weighted_sum(base: Base, concepts: Sequence[NamedConcept], weights: Mapping[str, float]) -> dict[str, LowRank]:
    """Σi wi ΔWi for every layer: FedAvg with wi = 1/n, the scaled sum with anything else."""
    changes = {}
    for layer in adaptable_layers(base):
        given = [(weights[named.token], pair) for named in concepts if (pair := named.concept.pairs.get(layer.name))]
        if given:
            right = torch.cat([weight * pair.scale * pair.A.double() for weight, pair in given])
            changes[layer.name] = refactored(stacked_left([pair for _, pair in given]), right)
    return changes


def ties(
    base: Base, concepts: Sequence[NamedConcept], weights: Mapping[str, float], density: float
) -> dict[str, LowRank]:
    """TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708): trim each ΔWi to its largest share, elect signs, average who agrees.

    `density` is the share that is kept of each concept's entries.
    """
    merge = _peft().ties

    def merged(_layer: str, changes: list[Tensor], of: Tensor) -> Tensor:
        found: Tensor = merge(changes, of, density)
        return found

    return _merged(base, concepts, weights, merged)


def dare(
    base: Base, concepts: Sequence[NamedConcept], weights: Mapping[str, float], density: float, *, seed: int = 0
) -> dict[str, LowRank]:
    """DARE (Yu et al., ICML 2024, arXiv 2311.03099): drop entries of each ΔWi at random, rescale the rest by 1/density, sum.

    What is dropped depends on `seed` and the layer's name alone, so a merge can be made again; what it is worth is a mean over seeds.
    """
    merge = _peft().dare_linear

    def merged(layer: str, changes: list[Tensor], of: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(hashlib.sha256(f"{seed} {layer}".encode()).hexdigest()[:12], 16))
            found: Tensor = merge(changes, of, density)
        return found

    return _merged(base, concepts, weights, merged)


def custom_diffusion(base: Base, concepts: Sequence[NamedConcept], ordinary: Sequence[str]) -> dict[str, LowRank]:
    """Custom Diffusion's constrained merge (Kumari et al., CVPR 2023, arXiv 2212.04488, section 3.3), keys and values only.

        min ‖Δ X0ᵀ‖  subject to  Δ Xiᵀ = ΔWi Xiᵀ for every concept i

    X0 are features of ordinary prompts, Xi those of concept i's words, all as the untouched text encoder gives them, since
    nothing else is merged. With X0ᵀX0 = R = L Lᵀ, X all Xi, T all targets and Z = X L⁻ᵀ it is Δ = Tᵀ (Z⁺)ᵀ L⁻¹: the paper's closed
    form, Tᵀ (X R⁻¹ Xᵀ)⁻¹ X R⁻¹, for constraints that may depend on each other too.
    """
    layers = [layer for layer in adaptable_layers(base) if layer.group is Group.CROSS]
    numbers = word_layer_numbers(base)
    order = {f"unet.{name}": k for k, (name, _) in zip(numbers, cross_attentions(base), strict=True)}
    own = [_features(base, named) for named in concepts]
    usual = _features(base, None, ordinary)
    changes = {}
    for layer in layers:
        k = order[layer.name.rpartition(".")[0]]
        pairs = [named.concept.pairs.get(layer.name) for named in concepts]
        X = torch.cat([features[k] for features in own])
        targets = [
            features[k] @ pair.change(torch.float64).T if pair else torch.zeros(len(features[k]), layer.d_out).double()
            for features, pair in zip(own, pairs, strict=True)
        ]
        R = usual[k].T @ usual[k]
        R += DAMPING * R.diagonal().mean() * torch.eye(len(R), dtype=R.dtype)
        L = torch.linalg.cholesky(R)
        Z = torch.linalg.solve_triangular(L.T, X, upper=True, left=False)
        if any(pairs):
            right = torch.linalg.solve_triangular(L, torch.linalg.pinv(Z).T, upper=False, left=False)
            changes[layer.name] = refactored(torch.cat(targets).T, right)
    return changes


def _features(
    base: Base, named: NamedConcept | None, prompts: Sequence[str] = PAPER_PROMPTS
) -> list[Float[Tensor, "rows width"]]:
    """By cross-attention layer: features of a concept's words and the first end, or of whole ordinary prompts."""
    vocabulary = {named.concept.name: words_of(named.concept, base)} if named else {}
    if named:
        prompts = [about(prompt, named.concept.name) for prompt in prompts]
    texts = [tokenise(base, prompt, vocabulary) for prompt in prompts]
    chosen = position_weights(texts, ROWS["words" if named else "text"]) > 0
    with torch.no_grad():
        features = encode_token_ids(base, texts, vocabulary).double().cpu()
    return [features[:, k][chosen] for k in range(features.shape[1])]


def _merged(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    merge: Callable[[str, list[Tensor], Tensor], Tensor],
) -> dict[str, LowRank]:
    """Merge the dense ΔWi of one layer after the other; what comes out has any rank and is factored exactly."""
    of = torch.tensor([weights[named.token] for named in concepts])
    changes = {}
    for layer in adaptable_layers(base):
        pairs = [named.concept.pairs.get(layer.name) for named in concepts]
        if any(pairs):
            nothing = torch.zeros(layer.d_out, layer.d_in)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The density")  # 1.0 is a wish, not a mistake
                dense = merge(layer.name, [pair.change() if pair else nothing for pair in pairs], of)
            changes[layer.name] = refactored(dense.double(), torch.eye(layer.d_in, dtype=torch.float64))
    return changes


def _peft() -> Any:
    try:
        from peft.utils import merge_utils
    except ImportError as error:
        raise RequestError(
            "ties and dare come from peft, which is not installed: pip install 'federated-mix-of-show[rivals]'"
        ) from error
    return merge_utils
