"""Evaluations while tuning: the state that is kept, when to stop, and overfitting."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.tuning import watch as watch_module
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.tune_folder import progress_picture, tune_folder
from mos_client.tuning.watch import OVERFIT_DROP, Evaluation, Watch, tensorboard
from mos_common.concept_file import read_concept
from mos_common.errors import RequestError
from mos_common.prompts import RECORDED, SCORED, WATCHED


class Scripted(Watch):
    """A watch with given evaluations: nothing is drawn."""

    def __init__(self, patience: int, *evaluations: Evaluation) -> None:
        self.patience, self.evaluations, self.rows = patience, list(evaluations), []


def scored(step: int, identity: float, prompt_adherence: float = 0.5, own: float = 0.5) -> Evaluation:
    return Evaluation(step, identity, prompt_adherence, own)


def test_the_best_is_the_highest_mean_of_identity_and_adherence_and_the_earliest_of_equals():
    watch = Scripted(3, scored(1, 0.6, 0.3), scored(2, 0.5, 0.5), scored(3, 0.5, 0.5), scored(4, 0.9, 0.0))
    assert watch.best is watch.evaluations[1]


@pytest.mark.parametrize(
    ("scores", "finished"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.45], True),
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.5, 0.5], True),
    ],
)
def test_it_is_finished_after_two_evaluations_without_improvement(scores, finished):
    assert Scripted(2, *(scored(i, score) for i, score in enumerate(scores))).finished is finished


def test_overfitting_is_lost_adherence_or_gains_on_its_own_pictures_alone():
    start = scored(1, 0.6, 0.6, 0.6)
    assert not Scripted(3, start, scored(2, 0.7, 0.6, 0.8)).over_fitted
    assert Scripted(3, start, scored(2, 0.7, 0.6 - 1.1 * OVERFIT_DROP, 0.8)).over_fitted, "contexts are no longer drawn"
    assert Scripted(3, scored(1, 0.7, 0.6, 0.6), scored(2, 0.6, 0.6, 0.8)).over_fitted, (
        "its own pictures gain, the others lose"
    )
    assert not Scripted(3, scored(1, 0.7, 0.6, 0.8), scored(2, 0.6, 0.6, 0.7)).over_fitted


def test_contexts_that_are_watched_are_not_those_that_are_scored():
    assert not set(WATCHED) & set(SCORED)
    assert set(WATCHED) - set(RECORDED)


@pytest.fixture
def run(sixteen, make_pictures, tmp_path):
    """Return a function that tunes a little on the random base, with settings changed by name."""
    pictures = make_pictures(4)

    def tune(name: str = "cat", **settings: object):
        changes = {
            "batch": "1",
            "watch_every": "1",
            "checkpoint_every": "100",
            **{k: str(v) for k, v in settings.items()},
        }
        request = TuneRequest(pictures, "<cat>", "cat", steps=6, settings=changes)
        return tune_folder(request, tmp_path / f"{name}.safetensors", work=tmp_path / "work", base=sixteen)

    return tune


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(run, monkeypatch, caplog):
    """With given scores, best after step 2, the file holds the parameters of that step."""
    scores = iter([0.5, 0.6, 0.55, 0.5, 0.4, 0.3])
    real = Watch.evaluate
    bests = []

    def scripted(self, tuning):
        before = self.best_values if self.evaluations else []
        evaluation = real(self, tuning)
        self.evaluations[-1] = replace(evaluation, identity=next(scores), prompt_adherence=0.5, own=0.5)
        self.best_values = before
        if self.best is self.evaluations[-1]:
            with tuning.averaged():
                self.best_values = [parameter.detach().clone() for parameter in tuning.parameters]
                bests.append((tuning.done, [value.clone() for value in self.best_values]))
        return self.evaluations[-1]

    monkeypatch.setattr(Watch, "evaluate", scripted)
    caplog.set_level(logging.INFO, "mos_client")
    concept = read_concept(run(patience=2))
    assert [step for step, _ in bests] == [1, 2]
    assert "finished: no later evaluation was better than that at step 2" in caplog.text
    assert "step 4: " in caplog.text
    assert "step 5: " not in caplog.text
    words = bests[-1][1][0]
    torch.testing.assert_close(concept.words[0].float(), words, rtol=1e-3, atol=1e-3)


def test_overfitting_is_logged(run, monkeypatch, caplog):
    adherences = iter([0.9, 0.9, 0.2, 0.2, 0.2, 0.2])
    real = Watch.evaluate

    def scripted(self, tuning):
        evaluation = real(self, tuning)
        self.evaluations[-1] = replace(evaluation, identity=0.5, prompt_adherence=next(adherences))
        return self.evaluations[-1]

    monkeypatch.setattr(Watch, "evaluate", scripted)
    run(patience=3)
    assert "overfitting after step 1" in caplog.text


def test_evaluations_are_drawn_at_fixed_seeds_and_leave_the_tuning_as_it_was(run, sixteen):
    """Evaluated often, seldom or never, a run has the same parameters before the best is chosen."""
    ends = []
    for every in (0, 2, 1):
        states = {}
        real = watch_module.Watch.evaluate

        def recorded(self, tuning, real=real, states=states):
            evaluation = real(self, tuning)
            states[tuning.done] = [parameter.detach().clone() for parameter in tuning.parameters]
            return evaluation

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch_module.Watch, "evaluate", recorded)
            out = run(f"every-{every}", watch_every=every, patience=100)
        ends.append(states.get(6))
        if every == 0:
            unwatched = read_concept(out)
    assert all(torch.equal(a, b) for a, b in zip(ends[1], ends[2], strict=True))
    torch.testing.assert_close(unwatched.words[0].float(), ends[1][0], rtol=1e-3, atol=1e-3)


def test_the_grid_has_a_row_for_each_evaluation_and_a_column_for_each_context(run, sixteen):
    grid = Image.open(progress_picture(run(watch_every=3, patience=9)))
    cell = sixteen.picture_size * max(1, 128 // sixteen.picture_size)
    assert grid.size == (150 + len(WATCHED) * cell, 2 * cell)
    assert np.asarray(grid)[:, 150:].std() > 0


def test_evaluations_in_a_checkpoint_of_version_0_1_0_are_read():
    """There prompt adherence was called "following"."""
    watch = Scripted(3)
    watch.restore('[{"step": 100, "identity": 0.6, "following": 0.4, "own": 0.7}]', {})
    assert watch.evaluations == [Evaluation(100, 0.6, 0.4, 0.7)]


def test_tensorboard_is_written_where_it_is_installed_and_asked_for_otherwise(tmp_path, monkeypatch):
    with tensorboard(None) as writer:
        assert writer is None
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(RequestError, match="pip install tensorboard"), tensorboard(tmp_path):
        pass
