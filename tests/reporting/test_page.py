import base64
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from sample_run import write_run

from reporting import page as reporting_page
from reporting.run_folder import RunFolder
from runs.files import ROOT, write_json


class Page(HTMLParser):
    """What the tests ask of the page: attributes that load something, tables by rows of cells, all text by tag."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.open, self.rows, self.frames, self.best = [], [], [], [], [], []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.loads += [value for name, value in attributes if name in ("src", "href", "action", "data", "poster")]
        self.frames += [value for name, value in attributes if name == "srcdoc"]
        if ("class", "best") in attributes:
            self.best.append((len(self.rows) - 1, len(self.rows[-1]) - 1))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, begins):
        """The cells of the first row whose first cell is so, without surplus blanks."""
        first = next(row for row in self.rows if row and row[0].strip() == begins)
        return [" ".join(cell.split()) for cell in first]

    @property
    def words(self):
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def written(whole):
    """Its page."""
    return reporting_page.write_report(whole)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "outputs"))


def page_of(folder):
    """The page, parsed; without its figures, which take seconds."""
    return Page(reporting_page.render(RunFolder.read(folder), [], reporting_page.Inlined(reporting_page.MOST_BYTES)))


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# ---- One file, offline
def test_the_page_asks_nothing_of_any_host(written):
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads and all(value.startswith(("data:", "#")) for value in page.loads)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    policy = next(
        values["content"] for tag, values in page.tags if values.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert written.stat().st_size < 15 * 2**20


def test_every_figure_is_on_the_page_and_on_disk(written):
    page, names = (
        Page(written.read_text(encoding="utf-8")),
        "cohort training risk_groups calibration over_time individuals attention".split(),
    )
    assert [values["id"] for tag, values in page.tags if tag == "figure" and "id" in values] == names
    assert {path.name for path in (written.parent / "figures").iterdir()} == {
        f"{n}.{s}" for n in names for s in ("svg", "png")
    }
    assert sum(value.startswith("data:image/svg+xml") for value in page.loads) == len(names)


def test_it_is_the_same_page_again(written):
    first = written.read_bytes()
    assert reporting_page.write_report(written.parent).read_bytes() == first


# ---- Numbers
def test_the_numbers_are_those_of_metrics_json(whole):
    page, figures = page_of(whole), json.loads((whole / "metrics.json").read_text())["tlstm"]["test"]
    cells = page.row("history (stage 2)")
    c = figures["c_index"]
    assert cells[1] == f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})"
    assert cells[4].startswith(f"{figures['auc']['3.0']['value']:.3f} ")
    assert cells[6].startswith(f"{figures['ibs']['value']:.3f} ")
    assert f"{figures['n']} test subjects, {figures['events']} events" in page.words
    assert page.row("oracle: longitudinal")[1]


def test_models_stand_in_the_order_of_their_c_index(whole):
    page = page_of(whole)
    models = [row[0].strip() for row in page.rows[1:4]]
    assert models == ["history (stage 2)", "cox last slope", "one scan (ResNet-18)"]
    assert "Another model does better" not in page.words


def test_the_best_of_each_column_is_marked(whole):
    page = page_of(whole)
    for column in range(1, 7):
        values = [float(row[column].split()[0]) for row in page.rows[1:4]]
        best = (min if page.rows[0][column] == "IBS" else max)(values)
        assert [row - 1 for row, at in page.best if at == column] == [i for i, v in enumerate(values) if v == best]


def test_a_baseline_that_wins_is_shown_as_winning(tmp_path):
    write_run(tmp_path, noise={"cnn": 1.2, "tlstm": 1.5, "cox_last_slope": 0.1})
    page = page_of(tmp_path)
    assert page.rows[1][0].strip() == "cox last slope"
    assert "Another model does better: the highest C-index of the test part" in page.words
    best = [i for i, (tag, values) in enumerate(page.tags) if values.get("class") == "best"]
    ours = next(i for i, (tag, values) in enumerate(page.tags) if tag == "tr" and values.get("class") == "ours")
    assert best and min(best) < ours


def test_differences_from_the_best_baseline(run):
    gain = {"from": "cox_last_slope", "c_index": {"value": 0.061, "low": 0.012, "high": 0.109}}
    change(run / "metrics.json", lambda metrics: metrics["tlstm"]["test"].update(difference=gain))
    page = page_of(run)
    assert page.rows[0][:4] == ["model", "C-index", "difference", "Uno's C"]
    assert page.row("history (stage 2)")[2] == "0.061 (0.012 to 0.109)" and page.row("cox last slope")[2] == ""
    assert "Difference: of the C-index from cox last slope, on the same resamples" in page.words
    assert len({len(row) for row in page.rows[:4]}) == 1


def test_the_caveats(run):
    page = page_of(run)
    assert "The cohort is simulated." in page.words and "With fewer than about 100" in page.words
    change(run / "config.json", lambda record: record["settings"].update(COHORT_CSV="mine.csv"))

    def worsen(metrics):
        test = metrics["tlstm"]["test"]
        test["events"] = 400
        test["calibration"]["2.0"]["slope"] = {"value": 0.4, "low": 0.2, "high": 0.6}
        test["uno_c"] = {"value": None, "low": None, "high": None, "why": "a reason <i>"}

    change(run / "metrics.json", worsen)
    page = page_of(run)
    assert "simulated" not in page.words.split("Models")[0] and "With fewer than" not in page.words
    assert "Predicted risks at 2 years are too extreme: calibration slope 0.40 (0.20 to 0.60)." in page.words
    assert "could not be computed are left empty: a reason <i>" in page.words
    assert page.row("history (stage 2)")[2] == "- a"


def test_reasons_stand_on_the_page_once_each(run):
    """Neither a finger nor the keyboard nor paper opens a tooltip."""

    def leave_out(metrics):
        test = metrics["tlstm"]["test"]
        test["c_index"]["note"] = "two tied <pairs>"
        test["ibs"] = test["uno_c"] = {"value": None, "low": None, "high": None, "why": "nobody is left"}
        metrics["oracle"]["longitudinal"]["note"] = "of the truth"

    change(run / "metrics.json", leave_out)
    page = page_of(run)
    row = page.row("history (stage 2)")
    assert row[1].split()[1] == "a" and (row[2], row[6]) == ("- b", "- b")
    assert page.row("oracle: longitudinal")[1].split()[1] == "c"
    assert "a two tied <pairs>b nobody is leftc of the truth" in page.words
    assert not any("title" in values for tag, values in page.tags if tag not in ("iframe", "html"))
    links = {values["href"] for tag, values in page.tags if tag == "a" and values["href"].startswith("#note-")}
    assert (
        links
        == {f"#note-{letter}" for letter in "abc"}
        == {f"#{values['id']}" for tag, values in page.tags if tag == "li" and "id" in values}
    )


def test_cross_validation_is_shown_where_there_is_one(run):
    window = {
        "tlstm": {name: {"value": 0.8, "sd": 0.02} for name in ("c_index", "auc", "ibs")},
        "locf_cox": {name: {"value": None, "sd": None} for name in ("c_index", "auc", "ibs")},
        "lstm": {name: {"value": 0.7, "sd": None} for name in ("c_index", "auc", "ibs")},  # of one fold
        "difference": {
            "locf_cox": {
                "c_index": {"value": 0.1, "se": 0.05},
                "auc": {"value": -0.2, "se": None},
                "ibs": {"value": None, "se": None},
            }
        },
    }
    change(run / "metrics.json", lambda metrics: metrics.update(cv={"2.0+3.0": window}))
    page = page_of(run)
    ours = [row for row in page.rows if row and row[0] == "history (stage 2)"][-1]
    assert ours[1:] == ["0.800 (0.020)"] * 3 + [""] * 3
    assert page.row("locf cox")[1:] == ["-"] * 3 + ["0.100 (0.050)", "\N{MINUS SIGN}0.200 (-)", "-"]
    assert page.row("lstm")[1:] == ["0.700 (-)"] * 3 + [""] * 3
    assert "From year 2.0, over 3.0 years" in page.words


COLUMNS = [
    ({"used": ["age", "sex"], "coded": {"sex": ["F", "M"]}, "unused": {"id": "one value, 3"}}, "levels: sex (F, M)."),
    (
        {"used": ["items"], "coded": {"items": ["<b>", "a&b"], "x": ["n"]}, "unused": {"<i>": "<u>"}},
        "items (<b>, a&b); x",
    ),
    ({"used": ["a<script>"], "coded": {}, "unused": {}}, "Stage 2 used a<script>."),
]


@pytest.mark.parametrize(("columns", "words"), COLUMNS)
def test_the_columns_and_why_some_are_not_used_are_shown(run, columns, words):
    change(run / "metrics.json", lambda metrics: metrics.update(columns=columns))
    page = page_of(run)
    assert words in page.words and f"Stage 2 used {', '.join(columns['used'])}." in page.words
    assert [f"{name}: {why}" for name, why in columns["unused"].items() if f"{name}: {why}" not in page.words] == []
    assert ("Not used, and why" in page.words) == bool(columns["unused"])
    change(run / "metrics.json", lambda metrics: metrics.pop("columns"))
    assert "Stage 2 used" not in page_of(run).words


# ---- Subjects
def test_every_prediction_has_its_row(whole):
    predicted = pd.read_csv(whole / "tlstm" / "predictions.csv").set_index("subjectid")
    page = page_of(whole)
    rows = [row for row in page.rows if row and row[0] in predicted.index]
    assert len(rows) == len(predicted)
    first = predicted.loc["S000"]
    cut = json.loads((whole / "metrics.json").read_text())["tlstm"]["test"]["risk_groups"]["cut"]
    assert page.row("S000") == [
        "S000",
        "train",
        "1.00",
        "event" if first["convert_status"] else "last seen",
        f"{first['time']:.2f}",
        "high" if first["log_hazard"] > cut else "low",
        f"{first['log_hazard']:.3f}",
        *(f"{1 - first[f'survival_{year}']:.3f}" for year in (2.0, 3.0, 5.0)),
    ]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "NA"])
def test_a_subjects_name_is_text(run, name):
    path = run / "tlstm" / "predictions.csv"
    path.write_text(path.read_text().replace("S000,", '"' + name.replace('"', '""') + '",'))
    page = page_of(run)
    assert page.row(name)[1] == "train"
    assert [tag for tag, _ in page.tags].count("script") == 2  # ours
    assert not any("onerror" in values for _, values in page.tags)


# ---- Explanations and record
def test_an_explanation_with_its_evidence(whole):
    page = page_of(whole)
    assert page.row("left hippocampus") == ["left hippocampus", "-0.512", "0.4"]
    assert page.row("elsewhere") == ["elsewhere", "0.01", "-"]
    assert page.words.index("left hippocampus") < page.words.index("elsewhere")  # the largest first
    assert page.row("shap, stability")[1] == "0.912" and page.row("shap, localisation, auc")[1] == "-"
    assert page.frames == ["<!DOCTYPE html><p id='inside'>\"viewer\" & more</p>"]
    kinds = [value.split(";")[0] for value in page.loads if value.startswith("data:")]
    assert kinds[-2:] == ["data:image/webp", "data:image/gif"]
    assert base64.b64decode(page.loads[-1].split(",")[1]) == (whole / "explain/S100_v2/gradcam_3d.gif").read_bytes()


def test_a_viewer_stands_in_a_sandbox(whole):
    """Its script draws; it reaches neither the page nor what a browser keeps for the page."""
    frames = [values for tag, values in page_of(whole).tags if tag == "iframe"]
    assert [values["sandbox"] for values in frames] == ["allow-scripts"]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"])
def test_names_of_regions_columns_and_evidence_are_text(run, name):
    folder = run / "explain" / "S100_v2"
    table = pd.DataFrame({"region": [name], "attribution": [1.0], name: [name]})
    table.to_csv(folder / "regions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({name: {"auc": name}}))
    page = page_of(run)
    assert page.row(name) == [name, "1", name] and page.row(f"{name}, auc") == [f"{name}, auc", name]
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any("onerror" in values for _, values in page.tags)


def test_each_picture_says_what_it_shows_of_which_scan_on_its_own_scale(run):
    shutil.copytree(run / "explain" / "S100_v2", run / "explain" / "S101_v2")
    shutil.copytree(run / "explain" / "S100_v2", run / "explained_cohort")
    page = page_of(run)
    alternatives = [values["alt"] for tag, values in page.tags if tag == "img"]
    assert len(set(alternatives)) == len(alternatives) == 6
    assert alternatives[:2] == [
        "SHAP map, smoothed, in slices of the three planes: S100_v2. "
        "The region of the largest attribution is left hippocampus, -0.512.",
        "Grad-CAM map, moving through the three planes: S100_v2.",
    ]
    assert alternatives[-1].endswith(": Many test subjects together.")
    assert page.words.count("On its own colour scale.") == 6
    assert "Each picture has a colour scale of its own" in page.words


@pytest.mark.parametrize(
    ("columns", "worth", "attention"),
    [
        ("visit,visit_time,shapley,standard_error,attention", True, True),
        ("visit,visit_time,shapley,standard_error", True, False),
        ("visit,visit_time,shapley,attention", False, False),  # of a version in which the parts did not agree
        (None, False, False),
    ],
)
def test_the_page_says_what_a_visit_is_worth_and_what_attention_is(run, columns, worth, attention):
    if columns:
        (run / "explain" / "S100_v2" / "visits.csv").write_text(f"{columns}\n")
    words = page_of(run).words
    assert ("What a visit is worth" in words) == worth
    assert ("a weight within the network, not a worth" in words) == attention


def test_what_would_make_the_page_too_large_is_named(whole):
    picture = reporting_page.Inlined(10**9)
    picture.uri(whole / "explain" / "S100_v2" / "shap.png")
    page = Page(reporting_page.render(RunFolder.read(whole), [], reporting_page.Inlined(10**9 - picture.room + 1000)))
    assert "1 pictures would make this page too large" in page.words and "S100_v2/gradcam_3d.gif" in page.words
    assert [value.split(";")[0] for value in page.loads if value.startswith("data:")] == ["data:image/webp"]


def test_the_record(whole):
    page = page_of(whole)
    assert page.row("cnn") == ["cnn", "12.3 s"] and page.row("tlstm") == ["tlstm", "not done"]
    assert page.row("numpy") == ["numpy", "2"] and page.row("COHORT_CSV") == ["COHORT_CSV", "unset"]
    assert "3 warnings 3 × main: <b>odd</b>" in page.words  # noqa: RUF001
    assert "code 0123456789ab with changes · seed 7" in page.words


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        ({"versions": {"numpy": "1.9"}, "commit": "0123456789abcdef+"}, "cnn (numpy 1.9 instead of 2)."),
        ({"versions": {"numpy": "2"}, "commit": "f" * 40}, "cnn (commit ffffffffffff instead of 0123456789ab+)."),
        ({"versions": {"numpy": "2"}, "commit": "0123456789abcdef+"}, None),
        ({}, None),
    ],
)
def test_a_stage_that_other_versions_have_made_is_named(run, made_by, words):
    change(run / "config.json", lambda record: record["stages"]["cnn"].update(made_by=made_by))
    begin = "Made by other versions than the rest of this run: "
    assert (begin in page_of(run).words) == bool(words) and (not words or begin + words in page_of(run).words)


# ---- A run with some stages only
def test_an_empty_run_is_a_page_that_says_so(tmp_path):
    page = Page(reporting_page.write_report(tmp_path).read_text(encoding="utf-8"))
    assert (
        "This run does not have: its settings (config.json); the cohort (splits); stage 1, one scan (cnn);"
        in page.words
    )
    assert "img" not in [tag for tag, _ in page.tags]
    assert "There is no run.log: whether the run warned of something is not known." in page.words
    assert "No warnings" not in page.words


def test_a_log_without_warnings_says_so(run):
    (run / "run.log").write_text("2026-01-31 12:00:00,000 INFO main: begun\n")
    assert "No warnings in run.log." in page_of(run).words


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("splits", "the cohort (splits)"),
        ("cnn", "stage 1, one scan (cnn)"),
        ("tlstm", "stage 2, the history (tlstm)"),
        ("metrics.json", "figures of how good the models are (metrics.json)"),
        ("explain", "explanations (explain)"),
        ("config.json", "its settings (config.json)"),
    ],
)
def test_a_missing_part_is_named(run, gone, missing):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"This run does not have: {missing}." in page_of(run).words


def test_stage_1_alone(run):
    shutil.rmtree(run / "tlstm")
    change(run / "metrics.json", lambda metrics: [metrics.pop(name) for name in ("tlstm", "baselines", "oracle")])
    page = Page(reporting_page.write_report(run).read_text(encoding="utf-8"))
    assert "C-index, one scan (ResNet-18)" in page.words and "C-index, history" not in page.words
    assert [values["id"] for tag, values in page.tags if tag == "figure" and "id" in values] == ["cohort", "training"]


# ---- The figures recomputed elsewhere
def recompute(folder):
    script = [sys.executable, str(ROOT / "benchmarks" / "recompute.py"), str(folder)]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_scikit_survival_finds_the_same_figures_in_the_predictions(run):
    done = recompute(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 figures agree" in done.stdout


@pytest.mark.parametrize("name", ["c_index", "uno_c", "ibs", "hazard_ratio"])
def test_a_figure_that_is_wrong_is_found(run, name):
    change(run / "metrics.json", lambda metrics: metrics["tlstm"]["test"][name].update(value=0.7123456))
    done = recompute(run)
    assert done.returncode == 1 and "9 of 10 figures agree" in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith(name)).endswith("DIFFERS")


@pytest.mark.parametrize(
    ("progress", "shown", "is_caveat"),
    [
        (None, [], False),
        ({"error": 0.02, "alarm": True, "why": "One pace in all."}, ["98% of the time", "Drift alarm: One pace"], True),
        ({"error": 0.4, "alarm": False, "why": "Many paces."}, ["60% of the time", "No sign of a drift: Many"], False),
        ({"error": 0.9, "alarm": None, "why": "Too noisy."}, ["can't be told: Too noisy."], False),
        ({"error": None, "alarm": None, "why": "No progress here."}, ["No progress here."], False),
    ],
)
def test_the_drift_of_progress(tmp_path, progress, shown, is_caveat):
    metrics = {} if progress is None else {"progress": progress}
    write_json(tmp_path / "metrics.json", metrics)
    text = " ".join(reporting_page.write_report(tmp_path).read_text(encoding="utf-8").replace("&#39;", "'").split())
    assert [words for words in shown if words not in text] == []
    assert ('id="progress"' in text) == bool(shown)
    assert ("Progress may follow a scanner" in text) == is_caveat
