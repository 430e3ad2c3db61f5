"""Cost of each concept in a federation of many: admission, journal, recording, solving, manifest.

    nice -n 15 python tests/bench/bench_scale.py                      10 to 1,000 participants
    python tests/bench/bench_scale.py --counts 10 30 --minutes 2

Participants are simulated in one process, on `tiny`: the real admission, journal, recording and
solving, with built concepts, one context and one ordinary prompt at two steps. A count is fused in
groups of `--group`: a round's influence and manifest grow with the square of what is in it. After
the time that is given no larger count begins.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Bench, seconds
from synthetic import random_concept

from mos_common.base_model import Base, load_base
from mos_common.concept_file import concept_to_bytes
from mos_common.fused_model import NamedConcept
from mos_common.node_key import create_node_key, public_pem
from mos_server.admission import admit
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.models.publish import manifest_bytes
from mos_server.round.intake import take_upload
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import ServerConfig, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import RoundSettings

QUICK = GradientSettings(steps=2, contexts=("V",), ordinary=("a",), least_share=None)


def measure(bench: Bench, base: Base, count: int, group: int) -> None:
    """Take `count` participants through a round, to its fused model."""
    case = f"{count} participants"
    uploads = [concept_to_bytes(upload(base, seed)) for seed in range(count)]
    bench.add(case, "size of an upload", len(uploads[0]) / 1e6, "MB")
    bench.add(case, "admission", seconds(lambda: [admit(data, base) for data in uploads]) / count * 1e3, "ms each")
    with tempfile.TemporaryDirectory() as folder:
        state = create_state(Path(folder) / "state", ServerConfig(base="tiny", base_fingerprint=base.fingerprint))
        with closing(Journal(state.database)) as journal:
            pem = public_pem(create_node_key(Path(folder) / "key"))

            def enrol() -> None:
                for i in range(count):
                    token, _ = journal.participants.invite(f"p{i}", valid_s=3600)
                    journal.participants.enrol(token, f"{i:064x}", pem)

            bench.add(case, "invited and enrolled", seconds(enrol) / count * 1e3, "ms each")
            round_id = journal.rounds.ask(RoundSettings()).id
            people = {each.key: each for each in journal.participants.all()}

            def take() -> None:
                for i, data in enumerate(uploads):
                    taken = take_upload(state, journal, base, people[f"{i:064x}"], data, round_id)
                    assert taken.refused is None, taken.refused

            bench.add(case, "upload taken (admitted, stored, journalled)", seconds(take) / count * 1e3, "ms each")
            admitted = journal.uploads.admitted(round_id)
            bench.add(
                case,
                "uploads of a round read from the journal",
                seconds(lambda: journal.uploads.admitted(round_id)),
                "s",
            )
            bench.add(
                case,
                "journal and audit",
                sum(path.stat().st_size for path in state.path.iterdir() if path.is_file()) / count / 1e3,
                "kB each",
            )
            concepts = named_concepts(state, admitted)
        fuse_in_groups(bench, case, base, concepts, state.artefacts.moments, min(group, count))
    bench.add(case, "peak memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "MB")


def fuse_in_groups(bench: Bench, case: str, base: Base, concepts: list[NamedConcept], moments: Path, size: int) -> None:
    """Record all concepts in groups of `size`, solve each group, and solve the last one again."""
    groups = [concepts[i : i + size] for i in range(0, len(concepts), size)]
    began = time.perf_counter()
    for each in groups:
        fused = fuse(base, each, QUICK, moments_dir=moments, progress=lambda line: None)
    bench.add(case, "recorded and solved", (time.perf_counter() - began) / len(concepts), "s each")
    solved = seconds(lambda: fuse(base, groups[0], QUICK, moments_dir=moments, progress=lambda line: None))
    bench.add(case, f"solved again, {len(groups[0])} at once", solved / len(groups[0]), "s each")
    kept = sum(path.stat().st_size for path in moments.iterdir())
    bench.add(case, "kept moments", kept / len(concepts) / 1e6, "MB each")
    manifest = manifest_bytes(fused.manifest)
    bench.add(case, f"manifest of {len(groups[-1])}", len(manifest) / 1e3, "kB")
    table = len(json.dumps(fused.manifest.influence, separators=(",", ":")))
    bench.add(case, "of that, influence", table / 1e3, "kB")


def upload(base: Base, seed: int):  # type: ignore[no-untyped-def]
    """Return the concept of one participant, within the bounds of admission."""
    concept = random_concept(base, seed, rank=4, strength=0.01).concept
    return replace(concept, name=f"<c{seed}>")


def main() -> None:
    """Measure the counts that are asked for, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--group", type=int, default=50, help="concepts in one fusion")
    parser.add_argument("--minutes", type=float, default=10)
    asked = parser.parse_args()
    bench, base, began = Bench("scale"), load_base("tiny", device="cpu"), time.monotonic()
    for count in sorted(asked.counts):
        if time.monotonic() - began < 60 * asked.minutes:
            measure(bench, base, count, asked.group)
    bench.write()


if __name__ == "__main__":
    main()
