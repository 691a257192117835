"""The page's section on change, of runs with progress, without it, and with too few visits."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_run import write_run

from reporting import change_figures, page
from reporting.change_section import FOLDER, draw_change
from reporting.run_folder import RunFolder
from runs.files import read_json, write_json
from survival.change import TABLE, Lines, Population, change_table, write_change
from survival.change_metrics import measure_change
from tests.oracles.change_mixed_model import lines_table
from tests.reporting.test_page import page_of

EVIDENCE = {
    "map": {"sum": 0.7111, "outside_brain": 0.0, "localisation": {"auc": 0.99}},
    "weights": {"explained": 0.683, "localisation": {"auc": 0.948}},
    "change": {"localisation": {"auc": 0.994}},
    "shuffled": {
        "sum": -0.0004,
        "explained": -0.0001,
        "correlation": -0.2,
        "localisation": {"auc": 0.52},
        "map_localisation": {"auc": 0.94},
    },
}


def parts_of(num_visits=6, **others):
    """Parts of 40, 20 and 40 subjects, called as those of `write_run`; `others` are further columns."""
    tables = {}
    for part, size, first in (("train", 40, 0), ("val", 20, 60), ("test", 40, 80)):
        table = lines_table(size, seed=first)
        table["subject"] = (table.groupby("subject").ngroup() + first).map("S{:03d}".format)
        tables[part] = table.groupby("subject").head(num_visits).reset_index(drop=True).assign(**others)
    return tables


def add_change(folder, parts, measures, evidence=None):
    """What the stages `features`, `explain` and `report` add to a run's folder."""
    if "progress" in measures:
        write_change(folder, parts)
        (folder / "features").mkdir(exist_ok=True)
        table = parts["test"].rename(columns={"subject": "subjectid"})
        table.to_parquet(folder / "features" / "test.parquet")
    figures = measure_change(parts["test"], measures, num_resamples=50, seed=0) | {"map": evidence or {}}
    write_json(folder / "metrics.json", read_json(folder / "metrics.json") | {"change": figures})
    if evidence:
        (folder / FOLDER).mkdir()
        Image.new("RGB", (60, 30)).save(folder / FOLDER / "map.png")
        regions = {"region": ["left medial (-16, -40, 17)", "elsewhere"], "attribution": [0.31, -0.0004]}
        pd.DataFrame(regions).to_csv(folder / FOLDER / "regions.csv", index=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with progress, in months, with a brain that no scan can show to shrink."""
    folder = tmp_path_factory.mktemp("run") / "outputs"
    write_run(folder, num_resamples=20)
    rng = np.random.default_rng(2)
    parts = parts_of(brain_volume=1500.0)
    for table in parts.values():
        table["log_hazard"] = table["progress"] + 0.3 * rng.normal(size=len(table))
    add_change(folder, parts, ["progress", "log_hazard", "brain_volume"], EVIDENCE)
    return folder


def test_the_table_shows_the_figures_of_metrics_json(run):
    figures, shown = json.loads((run / "metrics.json").read_text())["change"], page_of(run)
    assert shown.row("test part") == ["test part", "progress, years", "log-hazard"]
    rates = [f"{figures['rate'][name]['mean']['value']:.2f}" for name in ("progress", "log_hazard")]
    assert [cell.split("(")[0] for cell in shown.row("mean rate, a year")[1:]] == rates
    sizes = [f"{np.ceil(figures['sample_size'][name]['value']):.0f}" for name in ("progress", "log_hazard")]
    assert [cell.split("(")[0] for cell in shown.row("subjects an arm to see 25 % slowing")[1:]] == sizes
    assert "40 subjects, 40 of them with two visits or more" in shown.words
    assert "Left out: brain volume, since it is the same at all visits of most subjects" in shown.words


def test_where_progress_is_read_is_told_with_what_speaks_against_it(run):
    shown = page_of(run)
    assert "sums to the mean rate of the training subjects, 0.71 years" in shown.words
    assert "explains 68 % of a left-out subject's years" in shown.words
    assert "it sums to 0.00 and explains 0 %" in shown.words  # no sign before 0
    assert "the weights alone 0.95, the mean change alone 0.99" in shown.words and "0.52; times the mean" in shown.words
    assert shown.row("left medial (-16, -40, 17)")[1] == "0.310" and shown.row("elsewhere")[1] == "0.000"
    assert "once the stage explain is done" not in shown.words


def test_every_subject_has_its_rate_in_the_table_of_subjects(run):
    table, shown = pd.read_csv(run / TABLE).set_index("subjectid"), page_of(run)
    column = shown.row("subject").index("rate of progress")
    for subject in ("S000", "S085"):
        assert shown.row(subject)[column] == f"{table.loc[subject, 'rate']:.2f}"
    assert shown.row("S040")[column] == ""  # it has a prediction and no row of change


def test_the_section_has_its_own_figures(run):
    drawn = list(draw_change(RunFolder.read(run)))
    assert [shown.name for shown in drawn] == ["change_courses", "change_lines"]
    assert {shown.section for shown in drawn} == {"change"}
    fields = [{"name": shown.name, "title": "t", "caption": "c", "width": 9, "uri": "#u"} for shown in drawn]
    both = [{**fields[0], "name": "cohort", "section": "figures"}, *({**each, "section": "change"} for each in fields)]
    text = page.render(RunFolder.read(run), both, page.Inlined(page.MOST_BYTES))
    before, section = text[: text.index('<h2 id="change">')], text[text.index('<h2 id="change">') :]
    section = section[: section.index('<h2 id="explanations">')]
    assert section.count("<img") == 3 and 'id="change_lines"' in section and 'id="change_courses"' in section
    assert before.count("<img") == 1 and 'id="cohort"' in before


def test_the_figures_show_the_subjects_of_the_test_part(run):
    change, population = RunFolder.read(run).change, RunFolder.read(run).population
    test = change[change["split"] == "test"]
    courses, rates = change_figures.courses_and_rates(test, RunFolder.read(run).progress, population).axes
    assert len(courses.collections[0].get_segments()) == 40
    drawn = rates.lines[0].get_ydata()
    np.testing.assert_allclose(np.asarray(drawn, float), np.sort(test["rate"]))
    axes = change_figures.lines(test, RunFolder.read(run).progress, population).axes
    assert len(axes) == 8 and axes[0].get_title(loc="left").startswith(test.sort_values("rate")["subject"].iloc[0])


# ---- Other runs
def test_without_progress_the_section_is_about_the_log_hazard_alone(tmp_path):
    write_run(tmp_path / "o", num_resamples=20)
    parts = {part: table.rename(columns={"progress": "log_hazard"}) for part, table in parts_of().items()}
    add_change(tmp_path / "o", parts, ["log_hazard"])
    shown = page_of(tmp_path / "o")
    assert shown.row("test part") == ["test part", "log-hazard"]
    assert "Without progress (PROGRESS) there is no rate of a single subject" in shown.words
    assert "rate of progress" not in shown.row("subject") and list(draw_change(RunFolder.read(tmp_path / "o"))) == []


@pytest.mark.parametrize(
    ("num_visits", "words"),
    [
        (1, "Left out: progress, since nobody has two visits."),
        (2, "noise of a scan (standard deviation): nobody has 3 visits or more"),
    ],
)
def test_too_few_visits_are_a_section_that_says_so(tmp_path, num_visits, words):
    write_run(tmp_path / "o", num_resamples=20)
    add_change(tmp_path / "o", parts_of(num_visits), ["progress"])
    shown = page_of(tmp_path / "o")
    assert words in shown.words and "No rates are given: the training subjects have too few visits" in shown.words
    assert list(draw_change(RunFolder.read(tmp_path / "o"))) == []


def test_an_earlier_run_has_no_section(tmp_path):
    write_run(tmp_path / "o", num_resamples=20)
    assert 'href="#change"' not in str(page_of(tmp_path / "o").tags) and "Change" not in page_of(tmp_path / "o").words


@pytest.mark.parametrize("num_subjects", [2, 5])
def test_few_subjects_are_drawn_too(num_subjects):
    parts = parts_of()
    population = Population.of(Lines.of(parts["train"], "progress"))
    visits = parts["test"][parts["test"]["subject"].isin(parts["test"]["subject"].unique()[:num_subjects])]
    change = change_table({"test": visits}, population).rename(columns={"subjectid": "subject"})
    figure = change_figures.lines(change, visits, population)
    assert sum(bool(axes.get_title(loc="left")) for axes in figure.axes) == num_subjects
    figure.draw_without_rendering()
    change_figures.courses_and_rates(change, visits, population).draw_without_rendering()
