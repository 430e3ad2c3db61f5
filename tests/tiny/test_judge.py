"""The judge's shares of right answers."""

from __future__ import annotations

from random import Random

import torch

from mos_tiny.recipe.judge import Judge, Question, on_both_sides
from mos_tiny.recipe.trials import COLOURS, noun_trials


def test_the_judge_counts_right_answers_with_floor_and_ceiling(tiny, world, monkeypatch, capsys):
    """A fake witness answers in the order of questions: drawn, untrained, rebuilt."""
    monkeypatch.setattr("mos_tiny.recipe.judge.learn_of_trials", lambda world, vae: None)
    trials = noun_trials(COLOURS, 1, world, Random(0))[:4]
    truth = [trial.truth["noun"] for trial in trials]
    answers = iter([[*truth[:3], "else"], ["else", truth[2]], truth])
    judge = Judge(tiny, world, steps=1, floor=2)
    judge.ask(trials, [Question("noun", "noun", 0.9, lambda pictures: next(answers))], seed=0)
    (verdict,) = judge.verdicts
    assert (verdict.drawn, verdict.floor, verdict.ceiling) == (0.75, 0.5, 1.0)
    assert verdict.missed == {truth[3]: 1} and "short" in str(verdict)


def test_each_side_of_a_pair_is_named_on_its_own():
    pictures = torch.cat([-torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)], dim=3)
    assert on_both_sides(lambda half: ["dark" if p.mean() < 0 else "light" for p in half])(pictures) == ["dark | light"]
