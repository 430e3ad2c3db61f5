"""Where fusion loses identity and where it moves the base: one group of layers at a time.

With each concept's *own* changes in one group (text encoder, keys and values, the rest of the
UNet), it is drawn as if fusion had cost nothing there. With one fused group *alone*, it is drawn as
if nothing else had been tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.tuning import Variant
from mos_bench.identity.drawing.models import Model, with_own
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case, shared_case, single_case
from mos_bench.identity.measuring.methods import Method
from mos_bench.identity.storage.cache import key_of
from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.layers import Group


def measure_groups(bench: Bench, concepts: Sequence[BenchConcept], variant: Variant, method: Method) -> dict[str, Case]:
    """Return cases by name: each group exchanged for the concept's own, and each group alone."""
    base, probed = bench.base, bench.probed(concepts)
    spec = bench.spec(concepts, variant, method)
    bench.fuse_all([spec], f"{method.name} of {len(concepts)}")
    fused, cases = bench.fused.model(spec), dict[str, Case]()
    for group in Group:
        name = f"own {group}"
        models = {c.name: with_own(base, fused, bench.tuned.concept(c, variant), group) for c in probed}
        cases[name] = single_case(bench, models, probed, name)
    for group in Group:
        name, model = f"fused {group} alone", alone(base, fused, group)
        requests = [request for concept in probed for request in bench.drawings.requests(model, concept)]
        bench.drawings.draw([*requests, *bench.drawings.unrelated(model)], name)
        cases[name] = shared_case(bench, {c.name: model for c in probed}, model, probed, name)
    return cases


def alone(base: Base, fused: Model, group: Group) -> Model:
    """Return a fused model without the other groups' changes."""
    in_group = _names(base, group)

    def load() -> dict[str, LowRank]:
        return {name: pair for name, pair in fused.changes().items() if name in in_group}

    return replace(fused, attached=key_of(fused.attached, fused.scale, "alone", group.name), load=load, scale=1.0)


def _names(base: Base, group: Group) -> frozenset[str]:
    return frozenset(layer.name for layer in base.layout.by_group[group])
