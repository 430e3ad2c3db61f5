"""Try every reader of strangers' files with inputs that coverage guides: `make fuzz`.

One process of atheris (libFuzzer for Python) for each reader, one after the other. What was
found to reach new code is kept in `build/fuzz`, so that the next run goes on from there, as are the
inputs that took longest and most. It ends with a table, and with exit code 1 if a reader broke its
limits; the input is then in `build/fuzz`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import atheris
import typer

HERE = Path(__file__).parent
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(help="For all readers together.")] = 3600.0,
    only: Annotated[str, typer.Option(help="Names of readers, with commas between.")] = "",
    out: Annotated[Path, typer.Option(help="What was found, and the inputs that reach most code.")] = Path(
        "build/fuzz"
    ),
) -> None:
    """Run every reader for its share of the time and print how many inputs it took."""
    from fuzz.readers import MAKERS

    names = only.split(",") if only else list(MAKERS)
    failed = []
    for name in names:
        print(f"{name:26} {_run(name, seconds / len(names), out.resolve(), failed)}", flush=True)
    raise typer.Exit(1 if failed else 0)


def _run(name: str, seconds: float, out: Path, failed: list[str]) -> str:
    """Fuzz one reader in a process of its own, and return what came of it."""
    corpus = out / name
    corpus.mkdir(parents=True, exist_ok=True)
    # libFuzzer's own limit is by the clock on the wall, and only ends what hangs: see limits.py.
    limits = [f"-max_total_time={int(seconds)}", "-timeout=120", "-max_len=8192", "-rss_limit_mb=4096"]
    with (out / f"{name}.log").open("wb") as log:
        command = [sys.executable, str(HERE / "run.py"), "--reader", name]
        asked = [*limits, "-print_final_stats=1", f"-artifact_prefix={out}/{name}.", str(corpus)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        code = subprocess.run([*command, *asked], stdout=log, stderr=log, env=environment, check=False).returncode
    said = (out / f"{name}.log").read_text(errors="replace")
    tried = re.search(r"number_of_executed_units: (\d+)", said) or re.search(r"Done (\d+) runs", said)
    if code:
        failed.append(name)
        return f"broke its limits: see {out / f'{name}.log'}"
    most = json.loads((out / f"{name}.json").read_text())
    took = f"slowest {most['seconds']:.3f} s, largest {most['bytes'] / 1e6:.1f} MB"
    return f"{int(tried[1]) if tried else 0:>9,} inputs, {len(list(corpus.iterdir()))} kept, {took}"


class Most:
    """The most that an input of a reader took, written down with the input at each new one."""

    def __init__(self, out: Path, name: str) -> None:
        self._out, self._name = out, name
        self._most: dict[str, float] = {"seconds": 0.0, "bytes": 0}

    def saw(self, data: bytes, **took: float) -> None:
        """Remember what an input took, if it is the most."""
        for what, much in took.items():
            if much > self._most[what]:
                self._most[what] = much
                (self._out / f"{self._name}.most-{what}").write_bytes(data)
                (self._out / f"{self._name}.json").write_text(json.dumps(self._most))


def fuzz(name: str, arguments: list[str]) -> None:
    """Run one reader until the time is over; libFuzzer ends the process."""
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["mos_common", "mos_client", "mos_server"]):
        from fuzz.limits import read_within_limits
        from fuzz.readers import MAKERS
    with tempfile.TemporaryDirectory() as folder:
        reader = MAKERS[name](Path(folder))
        file = Path(folder) / "tried" / reader.file
        file.parent.mkdir()
        corpus = Path(arguments[-1])
        for number, seed in enumerate(reader.seeds):
            (corpus / f"good{number}").write_bytes(seed)

        for warm in reader.seeds:  # what is imported and built once costs no input
            read_within_limits(reader, file, warm, seconds=60.0)
        most = Most(corpus.parent, name)
        most.saw(b"", seconds=1e-9, bytes=1)

        def tried(data: bytes) -> None:
            cost = read_within_limits(reader, file, data)
            most.saw(data, seconds=cost.seconds, bytes=cost.bytes)

        atheris.Setup([sys.argv[0], *arguments], tried)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    if sys.argv[1:2] == ["--reader"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        app()
