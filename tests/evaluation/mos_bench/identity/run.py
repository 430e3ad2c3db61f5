"""`mos-bench identity`: measure the requested parts and write the results."""

from __future__ import annotations

import shutil
import time
from contextlib import closing

import torch

from mos_bench.identity.concepts.bench_concepts import described
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.options import Options, open_bench
from mos_bench.identity.pages.plots import require_matplotlib
from mos_bench.identity.pages.publishing import publish
from mos_bench.identity.pages.results import Results, plain
from mos_bench.identity.sections import SECTIONS
from mos_bench.rows import command_line, device_name, versions
from mos_common.base_model import load_base
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.shell import say


def run_identity(options: Options, *, helper: bool = False) -> Results | None:
    """Measure, and write the results; a helper only does its share of the work."""
    torch.set_num_threads(1)
    started, base = time.monotonic(), load_base(options.base, device=options.device, dtype=options.dtype)
    to = options.out / "results"
    if to.is_dir() and not any(options.out.glob("*/cache.sqlite")):
        raise RequestError(
            f"{to} holds files of something else, which would be replaced: give --out a folder of its own"
        )
    require_matplotlib()
    bench, results, sections = open_bench(options, base, helper=helper), Results(), list[str]()
    if not helper:
        shutil.rmtree(to, ignore_errors=True)  # the cache can make the tables of an earlier run again
    with closing(bench.cache):
        for part in options.parts:
            rows, section = SECTIONS[part](bench, options, to, helper)
            results.rows += rows.rows
            sections.append(section)
    if helper:
        return None
    about = _about(options, bench, time.monotonic() - started)
    results.add("run", "seconds", time.monotonic() - started, "s")
    write_atomically(to / "identity.json", results.json())
    write_atomically(to / "identity.csv", results.csv())
    page = "\n\n".join(["# Identity, measured", about, *sections]) + "\n"
    write_atomically(to / "results.md", page.encode())
    if options.docs is not None:
        publish(to, options.docs, sheets=not options.disjoint and options.protocol.seeds == 1)
    say(f"{to}: results.md, identity.json, tables (*.csv, *.md), plots and contact sheets (*.png)")
    return results


def _about(options: Options, bench: Bench, seconds: float) -> str:
    protocol, base = options.protocol, bench.base
    return "\n".join(
        [
            f"    {command_line()}",
            "",
            f"Concepts `{options.concepts}`, split `{options.half}`: {described(bench.half(options.half))}. "
            f"Prompts of each of four kinds: {protocol.prompts}; seeds: "
            f"{protocol.seeds}; concepts scored "
            f"of those fused: {f'the first {protocol.probed}' if protocol.probed else 'all'}"
            f"{'; as many disjoint sets of n as there are, pooled' if options.disjoint else ''}. Base "
            f"{options.base}, {base.fingerprint}. "
            f"{device_name()}; {seconds:.0f} s, with earlier results from the cache. {plain(dict(versions()))}.",
            "",
            "Image alignment is the mean cosine of all (drawn, held-back) pairs; identity accuracy the share "
            "of drawings that are "
            "nearest to their own concept among all; text alignment the share of what the prompt names "
            "(class, place, look, "
            "companion) that witnesses confirm; drift 1 - cosine of ordinary prompts' drawings to the base's; "
            "diversity 1 - cosine "
            "between the seeds of one prompt. Brackets are 95 % intervals over concepts"
            + (" and seeds." if protocol.seeds > 1 else "; at one seed, what other noise would change is not in them."),
            "Beside accuracy stands its interval over drawings, the concepts and prompts as they are (Wilson's).",
        ]
    )
