"""When a concept is ready: what is looked at, what is kept, when it stops, when it is called over-fitted."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.tuning import watch as watch_module
from mos_client.tuning.tune_folder import progress_picture, tune_folder
from mos_client.tuning.watch import LEARNT_BY_HEART, Look, Watch, tensorboard
from mos_common.concept_file import read_concept
from mos_common.errors import RequestError
from mos_common.prompts import RECORDED, SCORED, WATCHED


class Told(Watch):
    """A watch whose looks are told, not drawn."""

    def __init__(self, patience: int, *looks: Look) -> None:
        self.patience, self.looks, self.rows = patience, list(looks), []


def look(step: int, identity: float, following: float = 0.5, own: float = 0.5) -> Look:
    return Look(step, identity, following, own)


def test_the_best_is_the_highest_mean_of_identity_and_following_and_the_earliest_of_equals():
    told = Told(3, look(1, 0.6, 0.3), look(2, 0.5, 0.5), look(3, 0.5, 0.5), look(4, 0.9, 0.0))
    assert told.best is told.looks[1]


@pytest.mark.parametrize(("scores", "ready"), [([], False), ([0.5], False), ([0.5, 0.4], False), ([0.5, 0.4, 0.45], True), ([0.5, 0.4, 0.6], False), ([0.5, 0.5, 0.5], True)])  # fmt: skip
def test_it_is_ready_when_two_looks_were_no_better(scores, ready):
    assert Told(2, *(look(i, score) for i, score in enumerate(scores))).ready is ready


def test_over_fitting_is_named_by_what_was_lost():
    start = look(1, 0.6, 0.6, 0.6)
    assert not Told(3, start, look(2, 0.7, 0.6, 0.8)).over_fitted
    assert Told(3, start, look(2, 0.7, 0.6 - 1.1 * LEARNT_BY_HEART, 0.8)).over_fitted, "contexts are no longer followed"
    assert Told(3, look(1, 0.7, 0.6, 0.6), look(2, 0.6, 0.6, 0.8)).over_fitted, "its own pictures gain, the others lose"
    assert not Told(3, look(1, 0.7, 0.6, 0.8), look(2, 0.6, 0.6, 0.7)).over_fitted


def test_contexts_that_are_watched_are_not_those_that_are_scored():
    assert not set(WATCHED) & set(SCORED)
    assert set(WATCHED) - set(RECORDED)


@pytest.fixture
def run(sixteen, make_pictures, tmp_path):
    """Tune a little on the random base; changes of settings by name."""
    pictures = make_pictures(4)

    def tune(name: str = "cat", **settings: object):
        changes = {
            "batch": "1",
            "watch_every": "1",
            "checkpoint_every": "100",
            **{k: str(v) for k, v in settings.items()},
        }
        return tune_folder(
            pictures,
            concept="<cat>",
            class_word="cat",
            out=tmp_path / f"{name}.safetensors",
            work=tmp_path / "work",
            base=sixteen,
            steps=6,
            settings=changes,
        )

    return tune


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(run, monkeypatch, caplog):
    """Looks are told: best after the second step. The file is that of a run which was looked at in the same way and ended there."""
    scores = iter([0.5, 0.6, 0.55, 0.5, 0.4, 0.3])
    real = Watch.look
    seen = []

    def told(self, tuning):
        before = self.best_values if self.looks else []
        found = real(self, tuning)
        self.looks[-1] = replace(found, identity=next(scores), following=0.5, own=0.5)
        self.best_values = before
        if self.best is self.looks[-1]:
            with tuning.averaged():
                self.best_values = [parameter.detach().clone() for parameter in tuning.parameters]
                seen.append((tuning.done, [value.clone() for value in self.best_values]))
        return self.looks[-1]

    monkeypatch.setattr(Watch, "look", told)
    caplog.set_level(logging.INFO, "mos_client")
    concept = read_concept(run(patience=2))
    assert [step for step, _ in seen] == [1, 2]
    assert "ready: no look was better than that at step 2" in caplog.text
    assert "step 4: " in caplog.text
    assert "step 5: " not in caplog.text
    words = seen[-1][1][0]
    torch.testing.assert_close(concept.words[0].float(), words, rtol=1e-3, atol=1e-3)


def test_over_fitting_is_said(run, monkeypatch, caplog):
    following = iter([0.9, 0.9, 0.2, 0.2, 0.2, 0.2])
    real = Watch.look

    def told(self, tuning):
        found = real(self, tuning)
        self.looks[-1] = replace(found, identity=0.5, following=next(following))
        return self.looks[-1]

    monkeypatch.setattr(Watch, "look", told)
    run(patience=3)
    assert "over-fitted after step 1" in caplog.text


def test_looks_are_drawn_at_fixed_seeds_and_leave_the_tuning_as_it_was(run, sixteen):
    """The same run looked at often, seldom and never ends in the same parameters (before the best is chosen)."""
    ends = []
    for every in (0, 2, 1):
        states = {}
        real = watch_module.Watch.look

        def looked(self, tuning, real=real, states=states):
            found = real(self, tuning)
            states[tuning.done] = [parameter.detach().clone() for parameter in tuning.parameters]
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch_module.Watch, "look", looked)
            out = run(f"every-{every}", watch_every=every, patience=100)
        ends.append(states.get(6))
        if every == 0:
            unwatched = read_concept(out)
    assert all(torch.equal(a, b) for a, b in zip(ends[1], ends[2], strict=True))
    torch.testing.assert_close(unwatched.words[0].float(), ends[1][0], rtol=1e-3, atol=1e-3)


def test_the_grid_has_a_row_a_look_and_a_column_a_context(run, sixteen):
    grid = Image.open(progress_picture(run(watch_every=3, patience=9)))
    cell = sixteen.picture_size * max(1, 128 // sixteen.picture_size)
    assert grid.size == (150 + len(WATCHED) * cell, 2 * cell)
    assert np.asarray(grid)[:, 150:].std() > 0


def test_tensorboard_is_written_where_it_is_installed_and_asked_for_otherwise(tmp_path, monkeypatch):
    with tensorboard(None) as writer:
        assert writer is None
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(RequestError, match="pip install tensorboard"), tensorboard(tmp_path):
        pass
