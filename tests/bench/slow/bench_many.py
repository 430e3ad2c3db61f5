"""A round of many participants: seconds, processor time, memory and disk at n = 4, 16 and 64.

    python tests/bench/slow/bench_many.py            the crowd of tests/end_to_end/crowd.py
    python tests/bench/slow/bench_many.py --stock    mos-client join for each, n = 4 and 16

The base is `tiny`, the concepts are built and not tuned (tests/end_to_end/many.py), and a fusion
records one context and one ordinary prompt at two steps. In a crowd at most two score at a time,
with drawings of four steps; mos-client draws with 20.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from harness import Bench

from end_to_end.many import Figures, crowd_round, make_federation, stock_round
from mos_common.base_model import load_base

DRAWN = ("--scoring-steps", "4")


def add(bench: Bench, count: int, figures: Figures) -> None:
    """Add the figures of one round."""
    case = f"{count} participants"
    for part, seconds in figures.seconds.items():
        bench.add(case, f"wall time: {part}", seconds, "s")
    bench.add(case, "processor time of the server", figures.server_cpu_s, "s")
    bench.add(case, "processor time of the round's process", figures.round_cpu_s, "s")
    bench.add(case, "peak memory of the server", figures.server / 1e6, "MB")
    bench.add(case, "peak memory of the round's process", figures.round / 1e6, "MB")
    bench.add(case, "peak memory of all participants", figures.participants / 1e6, "MB")
    bench.add(case, "largest database of Flower", figures.database / 1e6, "MB")
    bench.add(case, "largest state folder", figures.state / 1e6, "MB")


def main() -> None:
    """Measure the rounds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="mos-client join and a SuperNode for each")
    parser.add_argument("--counts", type=int, nargs="*", help="participants")
    asked = parser.parse_args()
    bench, base = Bench("many-stock" if asked.stock else "many"), load_base("tiny", device="cpu")
    for count in asked.counts or ([4, 16] if asked.stock else [4, 16, 64]):
        with tempfile.TemporaryDirectory() as folder:
            federation = make_federation(Path(folder), count, base)
            add(bench, count, stock_round(federation) if asked.stock else crowd_round(federation, *DRAWN))
    bench.write()


if __name__ == "__main__":
    main()
