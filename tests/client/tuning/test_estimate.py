"""Memory and minutes before a tuning: counted and timed on the base itself, never remembered."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mos_client.tuning import estimate as estimating
from mos_client.tuning.estimate import estimate
from mos_client.tuning.judgement import Judged
from mos_client.tuning.memory_plan import Plan, step_gib
from mos_client.tuning.pace import Pace
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.settings import TuningSettings


@pytest.fixture
def judged(sixteen, tmp_path) -> Judged:
    settings = TuningSettings.of(sixteen.preset, steps=250, changes={"watch_every": "100", "batch": "4"})
    return Judged(TuneRequest(tmp_path, "<cat>", "cat"), sixteen, settings, Plan(4), [], [], [])


def test_minutes_are_the_timed_step_times_the_steps(judged, monkeypatch):
    """250 steps of 4 pictures at 0.5 s each, and two evaluations of 10 s."""
    monkeypatch.setattr(estimating, "time_evaluation", lambda judged: 10.0)
    monkeypatch.setattr(estimating, "_seconds", lambda device, work: (work(), 0.5)[1])
    memory, minutes = estimate(judged)
    assert "time: about 9 minutes on cpu, 250 steps of 2.00 s and 2 evaluations of 10.0 s" in minutes
    assert memory.startswith(f"memory: about {step_gib(judged.base, 4, 4, False):.1f} GB by a count of one step")


def test_without_evaluations_none_is_timed(judged, monkeypatch):
    monkeypatch.setattr(estimating, "draw", lambda *given, **how: pytest.fail("drawn"))
    silent = replace(judged, settings=replace(judged.settings, watch_every=0), plan=Plan(4, gib=1.5))
    memory, minutes = estimate(silent)
    assert memory == "memory: about 1.5 GB by a count of one step, 4 pictures at a time"
    assert re.search(r"250 steps of \d+\.\d\d s, by timing one", minutes)


def test_a_plan_too_large_for_this_machine_is_said(judged, monkeypatch):
    monkeypatch.setattr(estimating.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}[name])
    memory, _ = estimate(replace(judged, plan=Plan(4, gib=9.0)))
    assert "this machine has 4.0 GB: give --vram 2" in memory


def test_timing_leaves_the_base_as_it_was(judged):
    before = {name: value.clone() for name, value in judged.base.unet.state_dict().items()}
    assert estimating.time_step(judged) > 0
    assert estimating.time_evaluation(judged) > 0
    assert all((value == before[name]).all() for name, value in judged.base.unet.state_dict().items())
    assert not any(module._forward_hooks for module in judged.base.unet.modules())


def test_a_run_says_how_long_it_will_take_once_it_knows(judged, monkeypatch, caplog):
    """Steps of 4 s: after four of them, 246 are left."""
    from mos_client.tuning import pace
    from mos_client.tuning.loop import Step

    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", "mos_client")
    timed = Pace(judged.settings, judged.plan)
    for number in range(1, 10):
        now[0] += 4.0
        timed.tell(Step(number, 250, 0.1))
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"about 16 minutes to go: 4\.00 s for each step, timed here.*; memory so far: at most \d", line)
    caplog.clear()
    short = Pace(judged.settings, Plan(4, gib=1.0))
    for number in range(1, 6):
        now[0] += 4.0
        short.tell(Step(number, 6, 0.1))
    assert not caplog.records
