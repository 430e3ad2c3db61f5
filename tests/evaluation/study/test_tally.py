"""The tally against numbers by hand, the binomial, and every resample of a small case."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from evaluation.study.conftest import METHODS, answer_file
from mos_bench.cli import app
from mos_bench.study.answers import Rater, read_answers, sort_raters
from mos_bench.study.page import KEY
from mos_bench.study.report import run_tally
from mos_bench.study.tally import resampled, scores_of, tally, wilson
from mos_bench.study.trials import QUESTIONS, RIGHT, WRONG, Key, Trial, read_key
from mos_common.errors import RequestError


def key_of(concepts: int, catches: int = 0) -> Key:
    trials = [Trial(f"t{i}", f"<{i}>", "V", 0, {f"a{i}": "ours", f"b{i}": "theirs"}) for i in range(concepts)]
    trials += [Trial(f"c{i}", "<0>", "V", 0, {f"r{i}": RIGHT, f"w{i}": WRONG}) for i in range(catches)]
    return Key("s", ("ours", "theirs"), tuple(trials), {})


def rater(key: Key, choices: str, name: str = "a") -> Rater:
    """Return answers by letter: o(urs), t(heirs), n(either), r(ight), w(rong)."""
    words = {"o": "ours", "t": "theirs", "n": "neither", "r": RIGHT, "w": WRONG}
    chosen = {(t.trial, q): words[c] for t, c in zip(key.trials, choices, strict=True) for q in QUESTIONS}
    return Rater(name, Path(f"{name}.json"), chosen)


@pytest.mark.parametrize(("hits", "n"), [(0, 14), (7, 20), (19, 20), (20, 20)])
def test_wilsons_interval_is_that_of_the_binomial_test(hits, n):
    ends = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    ours = wilson(hits / n, n)
    assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high), abs=1e-9)


def test_wilsons_interval_holds_the_shares_whose_score_test_does_not_reject():
    """Its ends p0 solve (p - p0)² = z² p0 (1 - p0)/n, also for a share with ties."""
    share, n = 12.5 / 20, 20
    found = wilson(share, n)
    for end in (found.low, found.high):
        assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-5)


def test_wins_ties_and_losses_are_counted_and_a_tie_is_half():
    key = key_of(4)
    (same, text) = tally(key, [rater(key, "oont"), rater(key, "onnt", "b")])
    assert (same.question, text.question) == QUESTIONS
    assert (same.first, same.second) == ("ours", "theirs")
    assert (same.wins, same.ties, same.losses, same.pairs, same.raters) == (3, 3, 2, 4, 2)
    assert same.share == (3 + 3 / 2) / 8
    assert (same.low, same.high) == (wilson(4.5 / 8, 4).low, wilson(4.5 / 8, 4).high)


def test_questions_and_pairs_of_methods_are_counted_apart():
    trials = [
        Trial(str(i), f"<{i}>", "V", 0, {f"a{i}": one, f"b{i}": other})
        for i, (one, other) in enumerate([("x", "y"), ("z", "x"), ("z", "y"), ("y", "x")])
    ]
    key = Key("s", ("x", "y", "z"), tuple(trials), {})
    same = dict(zip("0123", ("x", "x", "y", "x"), strict=True))
    text = dict(zip("0123", ("y", "z", "y", "x"), strict=True))
    chosen = {(t, "same"): c for t, c in same.items()} | {(t, "text"): c for t, c in text.items()}
    found = {(c.question, c.first, c.second): (c.share, c.pairs) for c in tally(key, [Rater("a", Path(), chosen)])}
    assert found == {
        ("same", "x", "y"): (1.0, 2),
        ("same", "x", "z"): (1.0, 1),
        ("same", "y", "z"): (1.0, 1),
        ("text", "x", "y"): (0.5, 2),
        ("text", "x", "z"): (0.0, 1),
        ("text", "y", "z"): (1.0, 1),
    }


def test_the_bootstrap_is_the_distribution_over_all_resamples_of_raters_and_concepts():
    """Two raters and three concepts have 4 x 27 resamples; the ends are quantiles among them."""
    scores = np.array([[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 0.0, 0.5]])
    concepts = ["<a>", "<a>", "<b>", "<c>"]
    columns = {"<a>": [0, 1], "<b>": [2], "<c>": [3]}
    means = Counter[float]()
    for rows in product(range(2), repeat=2):
        for drawn in product(columns, repeat=3):
            chosen = [scores[row, column] for row in rows for concept in drawn for column in columns[concept]]
            means[float(np.mean(chosen))] += 1
    shares = np.sort(list(means.elements()))
    assert len(shares) == 108
    low, high = resampled(scores, concepts)
    near = 0.006  # the standard error of a tail of 2.5 % among 4,000 is 0.0025
    assert np.quantile(shares, 0.025 - near) <= low <= np.quantile(shares, 0.025 + near)
    assert np.quantile(shares, 0.975 - near) <= high <= np.quantile(shares, 0.975 + near)


def test_with_one_rater_the_bootstrap_is_the_binomial_over_concepts():
    """60 of 100 concepts: the resampled share is Binomial(100, 0.6)/100."""
    low, high = resampled(np.array([[1.0] * 60 + [0.0] * 40]), [f"<{i}>" for i in range(100)])
    assert (low, high) == pytest.approx([stats.binom.ppf(q, 100, 0.6) / 100 for q in (0.025, 0.975)], abs=0.011)


def test_alike_raters_add_nothing_over_concepts_and_one_of_each_has_no_interval():
    scores = np.array([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    concepts = [f"<{i}>" for i in range(8)]
    alone, crowd = resampled(scores, concepts), resampled(np.repeat(scores, 50, axis=0), concepts)
    assert alone == pytest.approx(crowd, abs=0.13)
    assert np.isnan(resampled(scores, ["<a>"] * 8)).all()


def test_raters_who_miss_catch_trials_are_left_out_by_the_stated_share():
    key = key_of(2, catches=5)
    raters = [rater(key, "oo" + caught, name) for name, caught in (("a", "rrrrw"), ("b", "rrrnw"), ("c", "nnnnn"))]
    found = sort_raters(raters, key)
    assert [kept.name for kept in found.kept] == ["a"]  # 8 of 10 questions: not fewer than 80 %
    assert [(out.name, right, asked) for out, right, asked in found.excluded] == [("b", 6, 10), ("c", 0, 10)]
    assert len(sort_raters(raters, key, least=0.0).kept) == 3
    assert scores_of(found.kept, key.trials[:2], "same", "ours").tolist() == [[1.0, 1.0]]


def test_the_command_prints_shares_and_the_excluded_and_writes_csv(study, tmp_path):
    out, key = study
    careful = answer_file(tmp_path / "1.json", key, lambda t, q: RIGHT if t.catch else METHODS[q == "text"], "one")
    careless = answer_file(tmp_path / "2.json", key, lambda t, q: "neither", "two")
    csv_file = tmp_path / "tally.csv"
    shown = CliRunner().invoke(
        app, ["study", "tally", str(out / KEY), str(careful), str(careless), "--csv", str(csv_file)]
    )
    assert shown.exit_code == 0, shown.output
    assert "1 raters count" not in shown.output
    assert "1 rater counts" in shown.output
    assert "at least 80%" in shown.output
    assert f"{careless}: 0 of 4 right" in shown.output
    same, text = csv.DictReader(csv_file.read_text().splitlines())
    assert (same["question"], same["first"], same["second"], same["wins"], same["pairs"]) == (
        "same",
        *METHODS,
        "3",
        "3",
    )
    assert (float(same["share"]), float(text["share"])) == (1.0, 0.0)
    assert float(same["low"]) == pytest.approx(3 / (3 + 1.959964**2))  # n/(n + z²) when all are won
    assert float(text["high"]) == pytest.approx(1.959964**2 / (3 + 1.959964**2))


DAMAGES = {
    "study": lambda d: d | {"study": "ffff"},
    "no rater": lambda d: {k: v for k, v in d.items() if k != "rater"},
    "rater": lambda d: d | {"rater": "../../etc"},
    "answers": lambda d: d | {"answers": "all"},
    "an answer": lambda d: d | {"answers": ["left"]},
    "a trial": lambda d: d | {"answers": [{**d["answers"][0], "trial": ["x"]}, *d["answers"][1:]]},
    "twice": lambda d: d | {"answers": [d["answers"][0], *d["answers"]]},
    "missing": lambda d: d | {"answers": d["answers"][1:]},
    "no choice": lambda d: d | {"answers": [{**d["answers"][0], "same": None}, *d["answers"][1:]]},
    "a choice": lambda d: d | {"answers": [{**d["answers"][0], "text": "left"}, *d["answers"][1:]]},
    "a list": lambda d: [d],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_answers_are_refused_by_name_with_what_to_do(damage, study, tmp_path):
    out, key = study
    file = answer_file(tmp_path / "answers.json", key, lambda *_: "neither")
    read_answers(file, key)
    file.write_text(json.dumps(DAMAGES[damage](json.loads(file.read_text()))))
    with pytest.raises(RequestError, match=r"answers\.json .*(send the file again|give both of one study)"):
        run_tally(out / KEY, [file])


@pytest.mark.parametrize("content", [b"", b'{"study": ', b"\xff\xfe\x00", b"[" * 100_000, b"7"])
def test_what_is_no_json_is_refused_as_answers_and_as_a_key(content, study, tmp_path):
    _, key = study
    file = tmp_path / "mail.json"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"mail\.json.* send the file again"):
        read_answers(file, key)
    with pytest.raises(RequestError, match=r"mail\.json.* give the key\.json"):
        read_key(file)
    with pytest.raises(RequestError, match=r"gone\.json cannot be read"):
        read_answers(tmp_path / "gone.json", key)


@pytest.mark.parametrize("part", ["study", "methods", "trials", "about"])
def test_a_key_without_a_part_is_refused(part, study, tmp_path):
    document = json.loads((study[0] / KEY).read_text())
    file = tmp_path / "key.json"
    for wrong in ({k: v for k, v in document.items() if k != part}, document | {part: 7}):
        file.write_text(json.dumps(wrong))
        if part == "about" and part in wrong:
            continue  # it is for people
        with pytest.raises(RequestError, match="not the key of a study"):
            read_key(file)


def test_one_raters_two_files_and_a_study_without_careful_raters_are_errors(study, tmp_path):
    out, key = study
    files = [answer_file(tmp_path / f"{i}.json", key, lambda *_: "neither", "same") for i in range(2)]
    with pytest.raises(RequestError, match="both of rater same: leave one of them out"):
        run_tally(out / KEY, files)
    with pytest.raises(RequestError, match="nothing to count"):
        run_tally(out / KEY, files[:1])
