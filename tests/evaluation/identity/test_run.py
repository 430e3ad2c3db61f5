"""The commands write all tables, plots and sheets, and refuse what makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import mos_bench.cli.identity as cli
import mos_bench.identity.measuring.multi as multi
import mos_bench.identity.measuring.paper_tables as tables
import mos_bench.identity.run as run
import mos_bench.identity.sections as sections
import mos_bench.identity.settings_study as study
from mos_bench.demo import run_demo
from mos_bench.identity.concepts.tuning import CUSTOM_DIFFUSION, ED_LORA, LORA, P_PLUS, TEXTUAL_INVERSION, Variant
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import Curve
from mos_bench.identity.measuring.methods import AVERAGE, SUM_TUNED, Method
from mos_bench.identity.options import PARTS, Options, size_of
from mos_bench.identity.pages.markdown import curve_table, over_drawings
from mos_bench.identity.run import run_identity
from mos_bench.identity.scoring.scores import Scores
from mos_bench.identity.settings_study import Study, measure_settings, study_rows
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.layers import Group
from mos_server.fusion.methods.gradient import GradientSettings

PROTOCOL = Protocol(prompts=1, seeds=1, probed=2, how=Drawing(steps=1))


SUM = Method("sum-tuned", SUM_TUNED.settings, (0.3, 0.6))


GRADIENT = Method("gradient", GradientSettings(steps=1, contexts=("V in the snow",), ordinary=("a dog",)))


@pytest.mark.parametrize(
    "flags", [("--prompts", "0"), ("--prompts", "9"), ("--seeds", "0"), ("--probed", "-1"), ("--fused", "0")]
)
def test_numbers_out_of_range_are_refused_before_anything_runs(flags):
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(app, ["identity", *flags])
    assert result.exit_code == 2 and "range" in result.output


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.md").write_text("years of work")
    with pytest.raises(RequestError, match="a folder of its own"):
        run_identity(Options(tmp_path))
    with pytest.raises(RequestError, match="which would be deleted"):
        run_demo(tmp_path)
    assert (tmp_path / "results" / "thesis.md").read_text() == "years of work"


def test_clip_needs_other_concepts_and_other_concepts_need_clip(tmp_path):
    for wrong in ({"scorer": "clip", "clip": tmp_path}, {"concepts": tmp_path}):
        with pytest.raises(RequestError, match="need each other"):
            Options(tmp_path, **wrong)


def test_quick_default_and_full_differ_in_size_only():
    assert size_of(quick=True, full=False).counts == (3, 8)
    assert size_of(quick=False, full=False).protocol == Protocol(prompts=1, seeds=1, probed=8)
    full = size_of(quick=False, full=True)
    assert full.protocol == Protocol(prompts=5, seeds=50, probed=0) and len(full.parts) == 5
    with pytest.raises(RequestError, match="contradict"):
        size_of(quick=True, full=True)


def test_every_table_plot_and_sheet_is_written(open_bench, monkeypatch, tmp_path, capsys):
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
    document = json.loads((to / "identity.json").read_bytes())
    assert set(document) == {"device", "versions", "rows"}
    figures = {row["figure"] for row in document["rows"] if row["case"] == "n=2 gradient"}
    assert figures >= {
        *("image_alignment", "image_alignment_change", "identity_accuracy", "text_alignment", "drift"),
        *("gain_over_sum_tuned", "gain_over_sum_tuned_low"),
    }
    assert figures >= {"identity_accuracy_over_drawings_low", "identity_accuracy_over_drawings_high", "drawings"}
    assert {"n=2 average", "n=2 sum-tuned"} <= {row["case"] for row in document["rows"]}
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


def test_the_settings_study_compares_each_setting_with_the_defaults(open_bench, monkeypatch):
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


def test_accuracy_over_drawings_counts_every_drawing_of_every_concept():
    """Wilson's interval of 4 of 8, by statsmodels; pictures that were not drawn have none."""
    often, seldom = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    drawn = {name: Scores(right, right, right, 0.0, tuple("abcd")) for name, right in (("<a>", often), ("<b>", seldom))}
    assert over_drawings(Case("fused", drawn)) == "[0.215, 0.785] of 8"
    assert over_drawings(Case("fused", drawn), ["<a>"]).endswith("of 4")
    assert over_drawings(Case("real", {"<a>": Scores(often, often, often, 0.0)})) == ""


@pytest.mark.parametrize(("diversity", "shown"), [(float("nan"), False), (0.125, True)])
def test_a_curve_shows_diversity_only_with_several_seeds(diversity, shown):
    scores = {name: Scores(*3 * [np.full((1, 1), 0.5)], diversity) for name in ("<a>", "<b>")}
    about = {"n": 2, "method": "gradient", "rank": 4, "n·r/d": 0.06, "scale": 1.0}
    curve = Curve([Case("n=2 gradient", scores, about, np.zeros((1, 1)))], {4: Case("single", scores)})
    lines = curve_table(curve, 4, []).splitlines()
    assert lines[0].endswith("diversity |") == shown
    assert all(line.endswith("0.125 [0.125, 0.125] |") == shown for line in lines[2:])
    assert len({line.count("|") for line in lines}) == 1
