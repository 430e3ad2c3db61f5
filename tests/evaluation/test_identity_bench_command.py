"""The command makes everything once, continues after a kill, and writes all tables and plots."""

from __future__ import annotations

import fcntl
import json
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import mos_bench.cli.identity as cli
import mos_bench.identity.drawing.requests as drawings
import mos_bench.identity.measuring.multi as multi
import mos_bench.identity.measuring.paper_tables as tables
import mos_bench.identity.run as run
import mos_bench.identity.sections as sections
import mos_bench.identity.settings_study as study
from mos_bench.demo import run_demo
from mos_bench.identity.concepts.bench_concepts import tiny_concepts
from mos_bench.identity.concepts.tuning import CUSTOM_DIFFUSION, ED_LORA, LORA, P_PLUS, TEXTUAL_INVERSION, Variant
from mos_bench.identity.drawing.models import single, untouched, words_only
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import Curve, measure_curve, sets_of
from mos_bench.identity.measuring.layer_groups import alone, with_own
from mos_bench.identity.measuring.methods import AVERAGE, SUM_TUNED, Method
from mos_bench.identity.options import PARTS, Options
from mos_bench.identity.pages.markdown import curve_table
from mos_bench.identity.run import run_identity
from mos_bench.identity.scoring.claims import ClaimChecker
from mos_bench.identity.scoring.scorers import EfficientNet
from mos_bench.identity.scoring.scores import Scores
from mos_bench.identity.settings_study import Study, measure_settings, study_rows
from mos_bench.identity.storage.sharing import Sharing
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.base_model import load_base
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing, draw
from mos_common.errors import RequestError
from mos_common.layers import Group
from mos_server.fusion.methods.gradient import GradientSettings
from mos_tiny.recipe.witnesses.of_prompts import LessonSizes

PROTOCOL = Protocol(prompts=1, seeds=1, probed=2, how=Drawing(steps=1))
SUM = Method("sum-tuned", SUM_TUNED.settings, (0.3, 0.6))
GRADIENT = Method("gradient", GradientSettings(steps=1, contexts=("V in the snow",), ordinary=("a dog",)))


@pytest.fixture(scope="module")
def checker(tiny):
    return ClaimChecker(tiny, sizes=LessonSizes(each=1, scenes=40, people=40, colours=40))


@pytest.fixture
def open_bench(tiny, make_concept, checker, tmp_path):
    """Open a bench on four concepts (two dev, two test) with random tuned files, in one folder."""
    concepts, caches = tiny_concepts()[::16], []

    def opened(protocol: Protocol = PROTOCOL, *variants) -> Bench:
        found = Bench.on(tiny, tmp_path / "out", protocol, scorer=EfficientNet(), concepts=concepts)
        found.scoring.claims = checker
        caches.append(found.cache)
        for i, concept in enumerate(concepts):
            for variant in variants or (ED_LORA,):
                path = found.tuned.path(concept, variant)
                if not path.is_file():
                    random = make_concept(tiny, concept.name, seed=i, strength=0.05, class_word=concept.class_word)
                    write_concept(random, path)
        return found

    yield opened
    for cache in caches:
        cache.close()


@pytest.fixture
def drawn(monkeypatch):
    """How many pictures were really drawn, by prompt."""
    counts: Counter[str] = Counter()

    def counting(base, prompts, seeds, **others):
        counts.update(prompts)
        return draw(base, prompts, seeds, **others)

    monkeypatch.setattr(drawings, "draw", counting)
    return counts


def test_a_second_run_draws_nothing_and_finds_the_same(open_bench, drawn):
    methods = [AVERAGE, SUM]
    first = measure_curve(open_bench(), "test", [2], methods, [4])
    once = drawn.total()
    again = measure_curve(open_bench(), "test", [2], methods, [4])
    assert once > 0 and drawn.total() == once
    for one, other in zip(first.cases, again.cases, strict=True):
        np.testing.assert_array_equal(one.matrix("image_alignment"), other.matrix("image_alignment"))
        np.testing.assert_array_equal(one.drift, other.drift)
    assert first.chosen == again.chosen


def test_disjoint_sets_are_fused_by_themselves_and_pooled(open_bench):
    """Two models of one concept each: both are scored, and averaging one loses nothing."""
    curve = measure_curve(open_bench(), "test", [1, 2], [AVERAGE, SUM], [4], disjoint=True)
    alone, together = curve.case(1, "average"), curve.case(2, "average")
    assert alone.about["sets"] == 2 and together.about["sets"] == 1
    assert set(alone.scores) == set(together.scores) and len(alone.scores) == 2
    np.testing.assert_allclose(  # to rounding: the pair of one is factored anew
        alone.matrix("image_alignment"), curve.singles[4].restricted(alone).matrix("image_alignment"), atol=1e-3
    )
    assert alone.drift.shape == together.drift.shape
    assert [list(one) for one in sets_of(range(7), 3, disjoint=True)] == [[0, 1, 2], [3, 4, 5]]
    assert [list(one) for one in sets_of(range(7), 3, disjoint=False)] == [[0, 1, 2]]


def test_a_killed_run_goes_on_from_what_it_had(open_bench, drawn, monkeypatch):
    model, counting = untouched(), drawings.draw
    mine = open_bench()
    wanted = [request for concept in mine.concepts for request in mine.drawings.requests(model, concept, of_class=True)]
    wanted += mine.drawings.unrelated(model)
    calls = []

    def killed(*arguments, **others):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return counting(*arguments, **others)

    monkeypatch.setattr(drawings, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        mine.drawings.draw(wanted, "half")
    before = drawn.total()
    monkeypatch.setattr(drawings, "draw", counting)
    again = open_bench()
    again.drawings.draw(wanted, "the rest")
    assert 0 < before < drawn.total() == len({request.key for request in wanted})


def test_the_untouched_base_does_not_drift_and_a_changed_one_does(open_bench, tiny):
    mine = open_bench()
    concept = mine.half("test")[0]
    changed = single(tiny, mine.tuned.concept(concept, ED_LORA))
    mine.drawings.draw([*mine.drawings.unrelated(untouched()), *mine.drawings.unrelated(changed)], "ordinary")
    assert mine.scoring.drift(untouched()).max() < 1e-5
    assert mine.scoring.drift(changed).mean() > 1e-4


def test_words_alone_leave_ordinary_prompts_as_they_were(open_bench, tiny):
    """They are even the same drawings: nothing of the concept is in what made them."""
    mine = open_bench()
    told = words_only(tiny, mine.tuned.concept(mine.half("test")[0], ED_LORA))
    assert [r.key for r in mine.drawings.unrelated(told)] == [r.key for r in mine.drawings.unrelated(untouched())]


def test_drawings_that_are_all_the_same_have_no_diversity(open_bench, monkeypatch):
    mine = open_bench(replace(PROTOCOL, seeds=3))
    concept = mine.half("test")[0]

    def same(base, prompts, seeds, **others):
        return torch.full((len(prompts), 3, 64, others["how"].width or 64), 0.25)

    monkeypatch.setattr(drawings, "draw", same)
    model = untouched()
    mine.drawings.draw(mine.drawings.requests(model, concept, of_class=True), "the same")
    assert mine.scoring.scores(model, concept, of_class=True).diversity == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("shown", "each", "all_of_them"), [((0, 1), 1.0, 1.0), ((0, 0), 0.5, 0.0), ((1, 0), 0.0, 0.0)])
def test_a_picture_of_two_counts_as_whole_only_with_both_in_their_places(
    open_bench, tiny, monkeypatch, shown, each, all_of_them
):
    mine = open_bench()
    two = mine.half("test")
    real = [
        tiny.decode_latents(tiny.encode_pictures(load_pictures(find_pictures(mine.tuned.pictures(c))[:1], 64)))[0]
        for c in two
    ]
    side_by_side = torch.cat([real[i] for i in shown], dim=2)
    monkeypatch.setattr(drawings, "draw", lambda base, prompts, seeds, **others: side_by_side[None])
    (scene,) = multi.scenes_of(two, 2)
    case = multi.scene_case(mine, untouched(), [scene], multi.CLASSES, "two")
    assert case.figure("identity_accuracy").mean == each
    assert case.figure("all_recognised").mean == all_of_them


def test_a_concept_with_all_scenes_of_its_own_is_what_it_is_alone(open_bench, tiny):
    """Groups are exchanged one after the other; each group alone leaves only its changes."""
    mine = open_bench()
    concepts = mine.half("test")
    own = mine.tuned.concept(concepts[0], ED_LORA)
    spec = mine.spec(concepts, ED_LORA, AVERAGE)
    mine.fuse_all([spec], "two")
    fused = mixed = mine.fused.model(spec)
    for group in Group:
        mixed = with_own(tiny, mixed, own, group)
    models = {"fused": fused, "mixed": mixed, "single": single(tiny, own)}
    requests = {name: mine.drawings.requests(model, concepts[0]) for name, model in models.items()}
    mine.drawings.draw([request for of_model in requests.values() for request in of_model], "three")
    pictures = {name: torch.stack([mine.cache.picture(r.key) for r in rs[:1]]) for name, rs in requests.items()}
    assert torch.equal(pictures["mixed"], pictures["single"])
    assert not torch.equal(pictures["fused"], pictures["single"])
    apart = [set(alone(tiny, fused, group).changes()) for group in Group]
    assert set().union(*apart) == set(fused.changes()) and sum(map(len, apart)) == len(fused.changes())


@pytest.mark.parametrize(("diversity", "shown"), [(float("nan"), False), (0.125, True)])
def test_a_curve_shows_diversity_where_there_are_seeds_to_differ(diversity, shown):
    scores = {name: Scores(*3 * [np.full((1, 1), 0.5)], diversity) for name in ("<a>", "<b>")}
    about = {"n": 2, "method": "gradient", "rank": 4, "n·r/d": 0.06, "scale": 1.0}
    curve = Curve([Case("n=2 gradient", scores, about, np.zeros((1, 1)))], {4: Case("single", scores)})
    lines = curve_table(curve, 4, []).splitlines()
    assert lines[0].endswith("diversity |") == shown
    assert all(line.endswith("0.125 [0.125, 0.125] |") == shown for line in lines[2:])
    assert len({line.count("|") for line in lines}) == 1


def test_a_drawing_is_known_by_what_made_it(open_bench, tiny):
    mine = open_bench()
    first, second = mine.half("test")
    one, other = (single(tiny, mine.tuned.concept(c, ED_LORA)) for c in (first, second))
    keys = {r.key for model, c in ((one, first), (other, second)) for r in mine.drawings.requests(model, c)}
    keys |= {r.key for r in mine.drawings.requests(untouched(), first, of_class=True)}
    keys |= {r.key for r in mine.drawings.requests(replace(one, scale=0.5), first)}
    assert len(keys) == 4 * 4


def test_a_piece_that_another_process_has_taken_is_waited_for(tmp_path):
    sharing, finished = Sharing(tmp_path), set()
    done = []
    file = sharing.lock_file("mine").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)

    def other() -> None:
        finished.add("mine")
        file.close()

    threading.Timer(0.2, other).start()
    sharing.all_of("work", ["mine"], key=str, done=finished.__contains__, do=done.append)
    assert done == []


def test_more_concepts_than_there_are_is_said_not_measured_under_a_wrong_name(open_bench, capsys):
    mine = open_bench()
    assert mine.counts_in("test", (1, 2, 14)) == [1, 2]
    assert "n = 14 left out: test has 2 concepts" in capsys.readouterr().out
    with pytest.raises(RequestError, match="test has 2 concepts"):
        mine.counts_in("test", (14, 40))
    with pytest.raises(RequestError, match="--ranks 2: choose from 4, 1"):
        Options(mine.fused.folder, ranks=(4, 2))


@pytest.mark.parametrize(
    "flags", [("--prompts", "0"), ("--prompts", "6"), ("--seeds", "0"), ("--probed", "-1"), ("--fused", "0")]
)
def test_numbers_out_of_range_are_refused_before_anything_runs(flags):
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(app, ["identity", *flags])
    assert result.exit_code == 2 and "range" in result.output


def test_folders_of_others_are_not_replaced(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.md").write_text("years of work")
    with pytest.raises(RequestError, match="a folder of its own"):
        run_identity(Options(tmp_path))
    with pytest.raises(RequestError, match="no demo"):
        run_demo(tmp_path)
    assert (tmp_path / "results" / "thesis.md").read_text() == "years of work"


def test_clip_judges_concepts_of_the_world_and_the_packages_scorers_those_of_tiny(tmp_path):
    for wrong in ({"scorer": "clip", "clip": tmp_path}, {"concepts": tmp_path}):
        with pytest.raises(RequestError, match="go together"):
            Options(tmp_path, **wrong)


def test_what_another_number_format_draws_is_kept_apart(open_bench, tmp_path):
    mine, base = open_bench(), load_base("tiny", dtype="bfloat16")
    half = Bench.on(base, tmp_path / "out", PROTOCOL, scorer=mine.scoring.scorer, concepts=mine.concepts)
    half.cache.close()
    assert half.fused.folder != mine.fused.folder and half.fused.folder.parent == mine.fused.folder.parent


def test_quick_default_and_full_are_one_command():
    assert size_of(quick=True, full=False).counts == (3, 8)
    assert size_of(quick=False, full=False).protocol == Protocol(prompts=1, seeds=1, probed=8)
    full = size_of(quick=False, full=True)
    assert full.protocol == Protocol(prompts=5, seeds=50, probed=0) and len(full.parts) == 5
    with pytest.raises(RequestError, match="contradict"):
        size_of(quick=True, full=True)


def test_every_table_plot_and_sheet_comes_out(open_bench, monkeypatch, tmp_path, capsys):
    variants = (ED_LORA, LORA, P_PLUS, TEXTUAL_INVERSION, CUSTOM_DIFFUSION)
    monkeypatch.setattr(run, "open_bench", lambda *a, **k: open_bench(PROTOCOL, *variants))
    monkeypatch.setattr(sections, "CURVE", (AVERAGE, SUM, GRADIENT))
    for module in (tables, multi):
        monkeypatch.setattr(module, "SUM_TUNED", SUM)
        monkeypatch.setattr(module, "GRADIENT", GRADIENT)
    monkeypatch.setattr(tables, "TABLE_1", (*tables.TABLE_1[:-1], ("ours", ED_LORA, GRADIENT)))
    options = Options(
        tmp_path / "out",
        counts=(2,),
        ranks=(4,),
        protocol=PROTOCOL,
        fused=2,
        docs=tmp_path / "docs",
        parts=PARTS,
        methods=("average", "sum-tuned", "gradient"),
    )
    run_identity(options)
    to = tmp_path / "out" / "results"
    told = json.loads((to / "identity.json").read_bytes())
    assert set(told) == {"device", "versions", "rows"}
    figures = {row["figure"] for row in told["rows"] if row["case"] == "n=2 gradient"}
    assert figures >= {
        *("image_alignment", "image_alignment_change", "identity_accuracy", "text_alignment", "drift"),
        *("gain_over_sum_tuned", "gain_over_sum_tuned_low"),
    }
    assert {"n=2 average", "n=2 sum-tuned"} <= {row["case"] for row in told["rows"]}
    page = (tmp_path / "docs" / "results.md").read_text()
    headings = ("Table 1", "Table 2", "Identity against", "Several concepts", "Drift of", "Figure 3")
    for heading in headings:
        assert heading in page
    for name in ("curve-rank4", "table1", "table2", "multi", "multi-sheet", "figure3", "figure3-sheet"):
        with Image.open(to / f"{name}.png") as picture:
            assert picture.width > 300
    for name in ("curve", "table1", "table2", "multi", "figure3", "identity"):
        assert (to / f"{name}.csv").is_file()
    shown = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(shown) == 9 and all((tmp_path / "docs" / file).is_file() for file in shown)
    published = {file.name for file in (tmp_path / "docs").iterdir()}
    tables_on_page = {f"{name}.csv" for name in ("curve", "table1", "table2", "multi", "figure3")}
    assert published == {"results.md", *tables_on_page, *shown}


def test_the_settings_study_compares_with_the_defaults(open_bench, monkeypatch):
    """Settings, other tunings against each alone, and the model taken apart."""
    diagonal = replace(GRADIENT.settings, ridge_kind="diagonal")
    monkeypatch.setattr(study, "BASE", GRADIENT.settings)
    monkeypatch.setattr(study, "AXES", {"ridge_kind": {"diagonal": diagonal}})
    monkeypatch.setattr(study, "TUNINGS", {"words 3": {"words": "3"}})
    asked = Study(open_bench().fused.folder, counts=(2,), only=("ridge_kind", "tuning", "groups"), protocol=PROTOCOL)
    other = Variant(f"{ED_LORA.title} words 3", {"words": "3"})
    results, points, text = study_rows(measure_settings(open_bench(PROTOCOL, ED_LORA, other), asked))
    assert points["image alignment"].keys() == {"ridge_kind diagonal", "words 3"}
    parts = {f"own {group}" for group in Group} | {f"fused {group} alone" for group in Group}
    names = {"single", "defaults", "ridge_kind diagonal", "words 3", "words 3, single", *parts}
    assert {row.case for row in results.rows} == {f"n=2 {name}" for name in names}
    drifting = {row.case for row in results.rows if row.figure == "drift"}
    assert drifting == {f"n=2 {name}" for name in names if "single" not in name and not name.startswith("own")}
    assert "## n = 2" in text
    for wrong in ({"only": ("colour",)}, {"rank": 3}):
        with pytest.raises(RequestError, match="choose from"):
            replace(asked, **wrong)
