"""Fusion against the paper's L-BFGS and a dense pseudo-inverse, and whole fusions on `tiny`.

    python tests/bench/bench_fusion.py [--quick] [--only memory|layers|accumulation|whole|influence]
    python tests/bench/bench_fusion.py --only whole --against 4da1127

Layers have the shapes of SD 1.5 and SDXL, four concepts of rank 4, synthetic rows. Our time
includes the Grams. L-BFGS is run as published: history 25, strong Wolfe, float32, starting at W0,
500 steps in text and 50 in the UNet. Whole fusions are measured in time and memory, and the
influence of one concept beside one solve of the same layers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from as_of import ROOT, checked_out, whole_fusion
from harness import Bench, alternating, peak_rss, seconds
from synthetic import LayerProblem, LayerShape, layer_problem, random_concept
from torch import Tensor

from mos_common.base_model import load_base
from mos_common.edlora import LowRank
from mos_common.layers import Group
from mos_common.prompts import RECORDED
from mos_server.fusion.fuse import fuse
from mos_server.fusion.gram import gram, sliced_gram, wide_gram
from mos_server.fusion.influence import kept_without
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.methods.lbfgs import LbfgsSettings, lbfgs_layer
from mos_server.fusion.methods.method import MethodSettings
from mos_server.fusion.moments import Moments, read_mean, write_moments
from mos_server.fusion.normal_equation import NormalEquations
from mos_server.fusion.ordinary_folder import CACHE
from mos_server.fusion.solve import solve_change, stacked_left

SHAPES = [
    LayerShape("SD 1.5 text encoder 768 to 768", 768, 768, 672, 500),
    LayerShape("SD 1.5 key 768 to 320", 768, 320, 96, 500),
    LayerShape("SD 1.5 key 768 to 1280", 768, 1280, 96, 500),
    LayerShape("SD 1.5 attention 320", 320, 320, 24_000, 50),
    LayerShape("SD 1.5 attention 640", 640, 640, 12_000, 50),
    LayerShape("SD 1.5 attention 1280", 1280, 1280, 5_120, 50),
    LayerShape("SDXL text encoder 1280 to 1280", 1280, 1280, 672, 500),
    LayerShape("SDXL key 2048 to 640", 2048, 640, 96, 500),
    LayerShape("SDXL key 2048 to 1280", 2048, 1280, 96, 500),
    LayerShape("SDXL attention 640", 640, 640, 24_000, 50),
    LayerShape("SDXL attention 1280", 1280, 1280, 12_000, 50),
]
CONCEPTS, RIDGE, EPSILON = 4, 1e-9, 1e-8
COUNTS = (16, 32)
PARTS = ("memory", "layers", "accumulation", "whole", "influence")
INFLUENCES = (8, 16)


def ours(problem: LayerProblem) -> LowRank:
    """Compute Grams and solution as `NormalEquations` does."""
    width = problem.W0.shape[1]
    S, right = torch.zeros(width, width, dtype=torch.float64), []
    for X, pair in zip(problem.rows, problem.pairs, strict=True):
        G = gram(X)
        S.add_(G, alpha=1 / len(X))
        right.append(pair.scale / len(X) * pair.A.double() @ G)
    return solve_change(S, stacked_left(problem.pairs), torch.cat(right), ridge=RIDGE)


def pseudo_inverse(problem: LayerProblem) -> Tensor:
    """Return the dense optimum: the pseudo-inverse of all rows in float64."""
    X = torch.cat([rows.double() / len(rows) ** 0.5 for rows in problem.rows])
    Y = torch.cat(
        [
            rows.double() / len(rows) ** 0.5 @ pair.change(torch.float64).T
            for rows, pair in zip(problem.rows, problem.pairs, strict=True)
        ]
    )
    return torch.linalg.lstsq(X, Y, driver="gelsd").solution.T


def objective(problem: LayerProblem, change: Tensor) -> float:
    """Σi ‖Xi (Δ - ΔWi)ᵀ‖²/mi in float64."""
    return sum(
        float((rows.double() @ (change.double() - pair.change(torch.float64)).T).square().sum()) / len(rows)
        for rows, pair in zip(problem.rows, problem.pairs, strict=True)
    )


def bench_layer(bench: Bench, shape: LayerShape, times: int) -> None:
    """Time one layer: ours in turns with L-BFGS, which takes minutes; the pseudo-inverse once."""
    problem = layer_problem(shape, CONCEPTS)
    changes = [pair.change() for pair in problem.pairs]
    solutions: dict[str, Tensor] = {}

    def by_ours() -> None:
        solutions["ours"] = ours(problem).change(torch.float64)

    def by_lbfgs() -> None:
        solutions["lbfgs"] = lbfgs_layer(problem.W0, changes, problem.rows, shape.steps)

    def densely() -> None:
        solutions["dense"] = pseudo_inverse(problem)

    by_ours()
    fast, slow = [], []
    for _ in range(times):
        fast += [seconds(by_ours) for _ in range(3)]
        slow.append(seconds(by_lbfgs))
        fast += [seconds(by_ours) for _ in range(2)]
    dense = [seconds(densely)]
    zero = objective(problem, torch.zeros(shape.d_out, shape.d_in))
    reached = {name: objective(problem, change) for name, change in solutions.items()}
    epsilon = EPSILON * zero
    bench.add_spread(shape.name, "seconds", fast, "s")
    bench.add_spread(shape.name, "seconds_lbfgs", slow, "s")
    bench.add(shape.name, "seconds_pseudo_inverse", dense[0], "s")
    bench.add_spread(shape.name, "speedup_vs_lbfgs", [each / statistics.median(fast) for each in slow], "x")
    bench.add(shape.name, "speedup_vs_pseudo_inverse", dense[0] / statistics.median(fast), "x")
    bench.add(
        shape.name, "objective_ratio_vs_lbfgs", (reached["ours"] + epsilon) / (reached["lbfgs"] + epsilon), "ratio"
    )
    bench.add(shape.name, "objective_over_zero", reached["ours"] / zero, "ratio")
    bench.add(shape.name, "objective_over_zero_lbfgs", reached["lbfgs"] / zero, "ratio")
    bench.add(shape.name, "objective_over_zero_pseudo_inverse", reached["dense"] / zero, "ratio")
    stored = CONCEPTS * shape.rows * (shape.d_in + shape.d_out) * 4
    bench.add(shape.name, "memory_lbfgs_over_ours", stored / (8 * shape.d_in**2), "x")


def bench_accumulation(bench: Bench) -> None:
    """Measure the error and the time of each way to sum XᵀX."""
    for width, count in ((320, 24_000), (1280, 5_120)):
        X = layer_problem(LayerShape("", width, 8, count, 0), 1).rows[0]
        exact = X.double().T @ X.double()
        ways = {
            "float64": lambda X=X: wide_gram(X),
            "slices": lambda X=X: sliced_gram(X),
            "float32": lambda X=X: (X.T @ X).double(),
        }
        for name, times in alternating(ways, 3).items():
            G = ways[name]()
            case = f"accumulation {width} {name}"
            bench.add_spread(case, "seconds", times, "s")
            bench.add(case, "relative_error", float((G - exact).norm() / exact.norm()), "ratio")
            bench.add(
                case,
                "least_eigenvalue_over_exact",
                float(torch.linalg.eigvalsh(G)[0] / torch.linalg.eigvalsh(exact)[0]),
                "ratio",
            )


def fuse_many(count: int, steps: int) -> None:
    """Fuse `count` concepts, in a separate process whose memory is measured."""
    torch.set_num_threads(2)
    base = load_base("tiny", device="cpu")
    fuse(
        base,
        [random_concept(base, seed) for seed in range(count)],
        GradientSettings(steps=steps),
        progress=lambda line: None,
    )


def bench_memory(bench: Bench, steps: int, times: int) -> None:
    """Measure 2 and 32 concepts in turns, each in a fresh process, since single readings vary."""
    few, many = [], []
    for _ in range(times):
        few.append(peak_rss(fuse_many, 2, steps) / 2**20)
        many.append(peak_rss(fuse_many, 32, steps) / 2**20)
    bench.add_spread("tiny", "peak_rss_2", few, "MiB")
    bench.add_spread("tiny", "peak_rss_32", many, "MiB")
    bench.add("tiny", "peak_rss_growth_2_to_32", statistics.median(many) / statistics.median(few) - 1, "fraction")


def bench_whole(bench: Bench, counts: tuple[int, ...], times: int, against: str | None) -> None:
    """Time whole fusions with a loaded base, in turns: what each saving gives, and the paper's way.

    What one saving gives alone is measured at the first count only, where it takes minutes less.
    `against` is an earlier commit, measured in turns with this one.
    """
    base = load_base("tiny", device="cpu")
    dear = GradientSettings(contexts=RECORDED, steps=20, guidance=None)
    alone: dict[str, MethodSettings] = {
        "16 contexts, 20 steps, guided": dear,
        "4 contexts": replace(dear, contexts=GradientSettings().contexts),
        "3 steps": replace(dear, steps=GradientSettings().steps),
        "no guidance": replace(dear, guidance=1.0),
    }
    for count in counts:
        concepts, case = [random_concept(base, seed) for seed in range(count)], f"n={count}"
        ways = (alone if count == counts[0] else {}) | {"all three": GradientSettings(), "paper": LbfgsSettings()}
        with tempfile.TemporaryDirectory() as cache:
            os.environ[CACHE] = cache

            def fused(settings: MethodSettings, *, known: bool, chosen: list = concepts, cache: str = cache) -> float:
                if not known:
                    shutil.rmtree(cache)
                return seconds(lambda: fuse(base, chosen, settings, progress=lambda line: None))

            fused(GradientSettings(), known=False, chosen=concepts[:1])
            taken: dict[str, list[float]] = {}
            for _ in range(times):
                for name, settings in ways.items():
                    taken.setdefault(name, []).append(fused(settings, known=False))
                    if name == "all three":
                        taken.setdefault("ordinary prompts known", []).append(fused(settings, known=True))
        for name, values in taken.items():
            bench.add_spread(case, f"seconds, {name}", values, "s")
        ratios = zip(taken["paper"], taken["ordinary prompts known"], strict=True)
        bench.add_spread(case, "paper over ours", [paper / ours for paper, ours in ratios], "x")
        if against:
            bench_against(bench, against, count, times)


def bench_against(bench: Bench, commit: str, count: int, times: int) -> None:
    """Time fusing, a join, a leave and the whole command by an earlier commit and by this one."""
    with checked_out(commit) as tree:
        pairs = [(whole_fusion(tree, count), whole_fusion(ROOT, count)) for _ in range(times)]
    for figure in pairs[0][0]:
        before, after = ([pair[i][figure] for pair in pairs] for i in (0, 1))
        bench.add_spread(f"n={count}", f"{figure} seconds of {commit}", before, "s")
        bench.add_spread(f"n={count}", f"{figure} seconds", after, "s")
        ratios = [old / new for old, new in zip(before, after, strict=True)]
        bench.add_spread(f"n={count}", f"{figure} faster than {commit}", ratios, "x")


def bench_influence(bench: Bench, count: int, times: int) -> None:
    """Time one solve of the rest of the UNet of `tiny`, and the influence of each of n concepts.

    Moments are of random rows and read from files, as in a round.
    """
    base, case = load_base("tiny", device="cpu"), f"influence n={count}"
    layers = [layer for layer in base.layout.attention if layer.group is Group.SPATIAL]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.safetensors" for i in range(count + 1)]  # the last: ordinary prompts
        recorded = []
        for seed, file in enumerate(files):
            generator = torch.Generator().manual_seed(seed)
            moments = Moments()
            for reads, width in {layer.reads: layer.d_in for layer in layers}.items():
                moments.add(reads, torch.randn(4 * width, width, generator=generator))
            recorded.append(moments.finished())
            write_moments(recorded[-1], file)
        settings = GradientSettings()
        terms = {name: getattr(settings, name) for name in ("preserve", "ridge", "ridge_kind", "towards", "cap")}
        equations = NormalEquations(layers, recorded[-1], **terms)
        for seed in range(count):
            equations.add(random_concept(base, seed).concept, recorded[seed])
        measured = alternating(
            {
                "solve": equations.solve,
                "influence": lambda: kept_without(
                    equations, lambda i, reads: read_mean(files[-1 if i is None else i], reads), count
                ),
            },
            times,
            "cpu",
        )
    bench.add_spread(case, "solve_seconds", measured["solve"], "s")
    bench.add_spread(case, "influence_seconds_each", [each / count for each in measured["influence"]], "s")
    pairs = zip(measured["influence"], measured["solve"], strict=True)
    bench.add_spread(case, "influence_each_over_solve", [all_ / count / one for all_, one in pairs], "x")


def main() -> None:
    """Run all parts, in under half an hour on two cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes and up to 4 concepts, to see whether it runs")
    parser.add_argument("--only", choices=PARTS, help="run one part and write it to its own file")
    parser.add_argument("--times", type=int, default=1, help="runs of each layer by L-BFGS, and of whole fusions")
    parser.add_argument("--against", help="a commit whose whole fusions are timed beside ours")
    quick = (arguments := parser.parse_args()).quick
    parts = [arguments.only] if arguments.only else PARTS
    torch.set_num_threads(2)
    bench = Bench("fusion" if not arguments.only else f"fusion_{arguments.only}")
    if "memory" in parts:
        bench_memory(bench, *((1, 1) if quick else (4, 5)))
    if "layers" in parts:
        for shape in SHAPES[1:4:2] if quick else SHAPES:
            bench_layer(bench, shape, arguments.times)
        speedups = [row.value for row in bench.rows if row.figure == "speedup_vs_lbfgs"]
        bench.add("all shapes", "speedup_vs_lbfgs_median", statistics.median(speedups), "x")
        bench.add("all shapes", "speedup_vs_lbfgs_least", min(speedups), "x")
    if "accumulation" in parts:
        bench_accumulation(bench)
    if "whole" in parts:
        bench_whole(bench, (2,) if quick else COUNTS, arguments.times, arguments.against)
    if "influence" in parts:
        torch.set_num_threads(1)  # processor time: threads that wait for each other would count
        for count in INFLUENCES[:1] if quick else INFLUENCES:
            bench_influence(bench, count, 2 if quick else 5)
    bench.write()


if __name__ == "__main__":
    main()
