"""`make gpu`: without a GPU it says so; its dry run is killed, continues, and becomes a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TOP = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(TOP / "tests" / "bench" / "gpu.py")]
ALL = ("fusion-sd15", "fusion-sdxl", "tuning", "drawing", "gram", "training")
WAIT_S = 500
# A dry run shares the machine with other tests.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def dry_run(out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "--dry-run", "--out", str(out), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, cwd=TOP, start_new_session=True, **pipes)


def killed_after(out: Path, step: str, *flags: str) -> set[str]:
    """Kill a dry run as soon as a step has its result; return the steps that have one."""
    process, until = dry_run(out, *flags), time.monotonic() + WAIT_S
    while not (out / f"{step}.json").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return {file.stem for file in out.glob("*.json")}


def continues(out: Path, steps: tuple[str, ...], killed: str, *flags: str) -> str:
    """Kill after a step and run again: no finished step runs twice. Return what was said."""
    finished = killed_after(out, killed, *flags)
    assert killed in finished
    assert finished < set(steps)
    before = {name: (out / f"{name}.json").stat().st_mtime_ns for name in finished}
    said = dry_run(out, *flags).communicate(timeout=WAIT_S)[0]
    assert {file.stem for file in out.glob("*.json")} == set(steps), said
    assert {name: (out / f"{name}.json").stat().st_mtime_ns for name in finished} == before
    begun = re.findall(r"^([\w-]+): begins$", said, re.MULTILINE)
    assert begun == [name for name in steps if name not in finished]
    for name in steps:
        report = json.loads((out / f"{name}.json").read_bytes())
        assert report["rows"] and (report["step"], report["device"]) == (name, "dry run")
        assert torch.__version__.startswith(report["versions"]["torch"].partition("+")[0])
    return said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    ended = subprocess.run(COMMAND, check=False, capture_output=True, text=True, env=ENVIRONMENT, cwd=TOP)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("no GPU") and "--dry-run" in line


def test_a_killed_dry_run_continues_with_what_is_missing(tmp_path):
    steps = ("fusion-sd15", "fusion-sdxl", "gram")
    chosen = [word for name in steps for word in ("--only", name)]
    continues(tmp_path, steps, "fusion-sd15", *chosen)
    gram = {row["figure"]: row["value"] for row in json.loads((tmp_path / "gram.json").read_bytes())["rows"]}
    assert gram["same_bits_as_the_cpu"] == 1
    assert gram["relative_error"] < 1e-7  # float32 alone: 1.6e-7 and more


@pytest.mark.slow
def test_every_step_runs_at_toy_size_after_a_kill_and_becomes_a_page(tmp_path):
    said = continues(tmp_path, ALL, "tuning")
    page = (tmp_path / "gpu.md").read_text()
    assert said.rstrip().endswith("gpu.md")
    assert re.findall(r"^## ([\w-]+),", page, re.MULTILINE) == list(ALL)
    assert "fuse_seconds" in page and "tiny, 8 more pictures" in page
    assert (tmp_path / "scratch" / "tiny" / "base" / "model_index.json").is_file()


def test_a_page_is_named_by_its_device_and_linked_once_from_the_page_of_benchmarks(tmp_path):
    from bench import gpu

    (tmp_path / "results").mkdir()
    shutil.copy(TOP / "docs" / "bench.md", tmp_path)
    before = (tmp_path / "bench.md").read_text()
    rows = [{"case": "sd15", "figure": "fuse_seconds", "value": 41.5, "unit": "s"}]
    for device in ("NVIDIA X100 80GB", "A/B (2)", "NVIDIA X100 80GB"):
        report = {"step": "gram", "device": device, "versions": {"torch": "2"}, "seconds": 3.0, "rows": rows}
        written = gpu.publish(gpu.page_of([report], Path("build/gpu/scratch/tiny")), device, tmp_path)
    assert written == tmp_path / "results" / "gpu-nvidia-x100-80gb.md"
    assert "| sd15 | fuse_seconds | 41.5 | s |" in written.read_text()
    links = "- [Measured on A/B (2)](results/gpu-a-b-2.md)\n"
    links += "- [Measured on NVIDIA X100 80GB](results/gpu-nvidia-x100-80gb.md)\n"
    mark = "<!-- pages of make gpu -->\n"
    assert (tmp_path / "bench.md").read_text() == before.replace(mark, mark + links)


def test_results_of_another_device_are_measured_again(tmp_path, capsys):
    from bench import gpu

    first = gpu.run_step("gram", gpu.TOY, tmp_path)
    assert gpu.run_step("gram", gpu.TOY, tmp_path) == first
    (tmp_path / "gram.json").write_text(json.dumps(first | {"device": "another"}))
    assert gpu.run_step("gram", gpu.TOY, tmp_path)["device"] == "dry run"
    said = capsys.readouterr().out
    assert "measured before" in said and "was measured on another, measured again" in said
