"""A run as one page: `report.html`, which opens offline, and its figures as SVG and PNG.

The page is made from the run's folder alone. What a run does not have is said on it.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from config import Config
from reporting import figures
from reporting.figures import interval, p_value
from reporting.run_folder import PARTS, RunFolder
from runs.files import read_json, written_whole
from survival import metrics
from survival.estimands import Prediction
from survival.estimates import Reference, breslow, survival_curves
from survival.evaluation import MODEL_NAMES

MOST_BYTES = 14 * 2**20  # of pictures in the page; a mail takes 15 MiB
WEBP_QUALITY = 88
MEDIA = {".svg": "image/svg+xml", ".png": "image/webp", ".gif": "image/gif"}
MOST_REGIONS = 12  # rows of regions.csv
PIXELS_AN_INCH = 120  # of a figure on the page
FEW_EVENTS = 100  # Vergouwe et al. (2005): fewer can hardly tell a good model from a middling one


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.svg|png` from what the run's folder holds.

    Args:
        folder: the run's OUTPUT_DIR; every stage's files are optional.
    Returns:
        The page's path. It is one file without any request to elsewhere, under 15 MiB.
    Raises:
        InputError: a JSON file of the run can't be read.
    """
    run, inlined = RunFolder.read(Path(folder)), Inlined(MOST_BYTES)
    page = render(run, list(_draw(run, inlined)), inlined)
    with written_whole(run.folder / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return run.folder / "report.html"


def render(run: RunFolder, drawn: list[dict[str, Any]], inlined: "Inlined") -> str:
    """The page as text.

    Args:
        run: what it tells.
        drawn: its figures: `name, title, caption, width` (pixels) and `uri`, or None if it did not fit.
        inlined: takes the explanations' pictures.
    """
    explained = [_explanation(folder, inlined) for folder in run.explained]
    return _template().render(
        run=run,
        names=MODEL_NAMES,
        headlines=list(_headlines(run)),
        caveats=list(_caveats(run)),
        missing=list(_missing(run)),
        models=_models(run),
        figures=drawn,
        subjects=_subjects(run),
        explained=explained,
        left_out=inlined.left_out,
    )


# ---- Figures -------------------------------------------------------------------------------------------
def _draw(run: RunFolder, inlined: "Inlined") -> Iterator[dict[str, Any]]:
    """Draw and save every figure of the run; what the page needs of each."""
    for name, title, caption, figure in _figures(run):
        path = figures.save(figure, run.folder / "figures", name)
        width = round(figure.get_figwidth() * PIXELS_AN_INCH)
        yield {"name": name, "title": title, "caption": caption, "width": width, "uri": inlined.uri(path)}


def _figures(run: RunFolder) -> Iterator[tuple[str, str, str, Figure]]:
    """Name, title, caption, figure, of what the run has."""
    if len(run.splits) == len(PARTS):
        yield (
            "cohort",
            "The cohort",
            "Subjects, not scans, are split. A row that cannot be used stops a run, so no scan was left out.",
            figures.cohort(run.splits),
        )
    if run.cnn is not None or run.tlstm is not None:
        yield (
            "training",
            "Training",
            "Dashed: the epoch whose weights were kept, of one scan that with the highest validation C-index, of the "
            "history that with the lowest validation loss (mean of the seeds; epoch 0 is the linear link alone). "
            "A loss depends on how many subjects it is over: compare the course of two, not their height.",
            figures.training(run.cnn, run.tlstm),
        )
    if run.predicted is not None and run.test is not None:
        yield from _test_figures(run, run.test)


def _test_figures(run: RunFolder, found: dict[str, Any]) -> Iterator[tuple[str, str, str, Figure]]:
    test = run.predictions("test")
    groups = found["risk_groups"]
    yield (
        "risk_groups",
        "Risk groups",
        f"Kaplan-Meier curves of the test part with 95 % bands (ticks: last seen). The groups are cut at the training "
        f"part's median log-hazard, {groups['cut']:.2f}. {_difference_in_years(found)}",
        figures.risk_groups(test, found),
    )
    yield (
        "calibration",
        "Calibration",
        "Of the test part, in groups of predicted risk, with 95 % intervals. On the dotted line observed and predicted "
        "risk agree. A slope below 1: predictions are too extreme; an intercept above 0: they are too low. "
        f"D-calibration: {p_value(found['d_calibration']['p'])} (a low p: the curves are not calibrated).",
        figures.calibration(found),
    )
    yield (
        "over_time",
        "Discrimination and error over time",
        "Test part, with 95 % bands; points where nothing can be estimated are left out. The dashed curve is what "
        "a model without any input reaches: the training part's Kaplan-Meier for everyone.",
        figures.over_time(*_over_time(run), [float(year) for year in found["auc"]]),
    )
    yield (
        "individuals",
        "Four subjects",
        "Predicted curves of four test subjects, from the highest risk to the lowest, each drawn anew at every visit "
        "(triangles): the darkest is that of the last one.",
        figures.individuals(test if run.by_visit is None else run.by_visit, run.visits("test")),
    )
    if any(name.startswith("attention_") for name in test.columns):
        yield (
            "attention",
            "Attention",
            "Attention weights of the test part's visits, by risk group: medians, quartiles, and the farthest values "
            "within 1.5 interquartile ranges. A weight tells where the model looked, not what it found there.",
            figures.attention(test, groups["cut"]),
        )


def _difference_in_years(found: dict[str, Any]) -> str:
    gain = found["rmst_difference"]
    if gain["value"] is None:
        return ""
    return f"Within {gain['years']:.1f} years, the low-risk group is free of the event for {interval(gain)} years more."


def _over_time(run: RunFolder) -> tuple[dict, dict]:
    """AUC and Brier score of stage 2 by grid point; the Brier score of one curve for everyone."""
    train = run.predictions("train")
    reference, ours = Reference.of(train), Prediction.of(run.predictions("test"))
    baseline = breslow(np.zeros(len(train)), reference.time, reference.event)
    same_for_all = survival_curves(baseline, np.zeros(len(ours.time)), ours.grid)
    num_resamples, seed = (
        run.settings.get(name, Config.model_fields[name].default) for name in ("NUM_RESAMPLES", "SEED")
    )
    by_year, by_year_without_model = (
        metrics.over_time(prediction, reference, num_resamples=num_resamples, seed=seed)
        for prediction in (ours, dataclasses.replace(ours, survival=same_for_all))
    )
    return by_year, by_year_without_model["brier"]


# ---- Numbers -------------------------------------------------------------------------------------------
def _headlines(run: RunFolder) -> Iterator[tuple[str, str, str]]:
    """What, the number, and what it is of."""
    for name, told in MODEL_NAMES.items():
        found = run.metrics.get(name, {}).get("test")
        if found is not None:
            yield (
                f"C-index, {told}",
                interval(found["c_index"]),
                f"{found['n']} test subjects, {found['events']} events",
            )
    if run.test is not None:
        for year, estimate in run.test["auc"].items():
            yield f"AUC at {float(year):g} years", interval(estimate), "history, test part"
        yield "hazard ratio, high to low risk", interval(run.test["hazard_ratio"], 1), "history, test part"


def _caveats(run: RunFolder) -> Iterator[str]:
    """What a reader must know before they believe the numbers."""
    if run.is_simulated:
        yield "The cohort is simulated. The figures say what the pipeline does, and nothing about patients."
    found = run.test or run.metrics.get("cnn", {}).get("test")
    if found is None:
        return
    if found["events"] < FEW_EVENTS:
        yield (
            f"The test part has {found['events']} events. With fewer than about {FEW_EVENTS}, differences between "
            "models are mostly chance: look at the intervals."
        )
    yield (
        "Intervals are 95 %, from resampled test subjects, for this one split and these trained models. What another "
        "split or another training would change is not in them."
    )
    best = _models(run)["rows"][0]
    if run.test is not None and best["c_index"]["value"] is not None and best["name"] != MODEL_NAMES["tlstm"]:
        yield (
            f"Another model does better: the highest C-index of the test part, {best['c_index']['value']:.3f}, is that "
            f"of {best['name']}; the T-LSTM's is {interval(run.test['c_index'], 3)}."
        )
    for year, at in (run.test or {}).get("calibration", {}).items():
        low, high = at["slope"]["low"], at["slope"]["high"]
        if low is not None and high is not None and not low <= 1 <= high:
            how = "extreme" if high < 1 else "cautious"
            yield f"Predicted risks at {float(year):g} years are too {how}: calibration slope {interval(at['slope'])}."
    if lacking := sorted(set(_reasons(found))):
        yield f"Figures that could not be computed are left empty: {'; '.join(lacking)}."


def _reasons(found: Any) -> Iterator[str]:
    """Every `why` within a part's figures."""
    if isinstance(found, dict):
        if "why" in found:
            yield found["why"]
        for value in found.values():
            yield from _reasons(value)
    elif isinstance(found, list):
        for value in found:
            yield from _reasons(value)


def _models(run: RunFolder) -> dict[str, Any]:
    """The test part's figures of every model, best C-index first; the best of each column; the oracle's C-index."""
    tested = {name: run.metrics[name]["test"] for name in MODEL_NAMES if "test" in run.metrics.get(name, {})}
    tested |= {name: found["test"] for name, found in run.metrics.get("baselines", {}).items()}
    rows = [{"name": MODEL_NAMES.get(name, _in_words(name)), **found} for name, found in tested.items()]
    rows.sort(key=lambda row: -(row["c_index"]["value"] or 0))
    years = list(rows[0]["auc"]) if rows else []

    def best(name: str, choose: Callable = max, year: str | None = None) -> float | None:
        estimates = (row[name] if year is None else row[name][year] for row in rows)
        return choose((at["value"] for at in estimates if at["value"] is not None), default=None)

    return {
        "rows": rows,
        "years": years,
        "has_differences": any("difference" in row for row in rows),
        "best": {
            "c_index": best("c_index"),
            "uno_c": best("uno_c"),
            "auc": {year: best("auc", year=year) for year in years},
            "ibs": best("ibs", min),
        },
        "oracle": {_in_words(name): estimate for name, estimate in run.metrics.get("oracle", {}).items()},
    }


def _subjects(run: RunFolder) -> dict[str, Any]:
    """A row a prediction of stage 2: whom, when, what was predicted, what came."""
    if run.predicted is None or run.test is None:
        return {"years": [], "rows": []}
    years = [year for year in run.test["auc"] if f"survival_{year}" in run.predicted]
    cut = run.test["risk_groups"]["cut"]
    ordered = run.predicted.sort_values(["split", "log_hazard"], ascending=[True, False], kind="stable")
    rows = [
        {
            **row,
            "group": "high" if row["log_hazard"] > cut else "low",
            "risks": [1 - row[f"survival_{year}"] for year in years],
        }
        for row in ordered.to_dict("records")
    ]
    return {"years": years, "rows": rows}


# ---- Explanations ----------------------------------------------------------------------------------------
def _explanation(folder: Path, inlined: "Inlined") -> dict[str, Any]:
    """The pictures, the viewer and the evidence of one explained scan."""
    viewers = {path.stem: inlined.text(path) for path in sorted(folder.glob("*.html"))}
    files = [path for suffix in (".png", ".gif") for path in folder.glob(f"*{suffix}")]
    pictures = sorted(files, key=lambda path: (path.suffix == ".gif", not path.stem.startswith("shap"), path.name))
    return {
        "name": folder.name,
        "viewers": {name: page for name, page in viewers.items() if page is not None},
        "pictures": [(path.name, uri) for path in pictures if (uri := inlined.uri(path)) is not None],
        "evidence": list(_flat(read_json(folder / "metrics.json"))),
        "regions": _regions(folder / "regions.csv"),
    }


def _regions(path: Path) -> list[dict[str, str]]:
    """The regions of the largest attributions, in words."""
    if not path.is_file():
        return []
    table = pd.read_csv(path).sort_values("attribution", key=np.abs, ascending=False, kind="stable")
    rows = table.drop(columns="label", errors="ignore").head(MOST_REGIONS).to_dict("records")
    return [{str(name): _told(value) for name, value in row.items()} for row in rows]


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """`{"shap": {"localisation": {"auc": 0.9}}}` as `("shap, localisation, auc", "0.900")`."""
    for name, value in found.items():
        here = f"{above}, {_in_words(name)}" if above else _in_words(name)
        if isinstance(value, Mapping):
            yield from _flat(value, here)
        else:
            yield here, _told(value)


def _told(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Inlined:
    """Files as parts of the page, while there is room; what does not fit is named.

    Args:
        room: bytes.
    """

    def __init__(self, room: int):
        self.room = room
        self.left_out: list[str] = []

    def uri(self, path: Path) -> str | None:
        """A picture as a data URI; a PNG becomes a WebP of a fifth of its size."""
        data, media = path.read_bytes(), MEDIA[path.suffix]
        if media == "image/webp":
            smaller = io.BytesIO()
            with Image.open(path) as picture:
                picture.convert("RGB").save(smaller, "WEBP", quality=WEBP_QUALITY)
            data = smaller.getvalue()
        text = base64.b64encode(data).decode()
        return f"data:{media};base64,{text}" if self._fits(path, len(text)) else None

    def text(self, path: Path) -> str | None:
        """A page's text."""
        page = path.read_text(encoding="utf-8")
        return page if self._fits(path, len(jinja2.filters.escape(page))) else None

    def _fits(self, path: Path, size: int) -> bool:
        if size > self.room:
            self.left_out.append(f"{path.parent.name}/{path.name}")
            return False
        self.room -= size
        return True


# ---- The page --------------------------------------------------------------------------------------------
def _missing(run: RunFolder) -> Iterator[str]:
    """The parts of the page that this run has nothing for."""
    if not run.config:
        yield "its settings (config.json)"
    if len(run.splits) < len(PARTS):
        yield "the cohort (splits)"
    if run.cnn is None:
        yield "stage 1, one scan (cnn)"
    if run.predicted is None:
        yield "stage 2, the history (tlstm)"
    if not run.metrics:
        yield "figures of how good the models are (metrics.json)"
    if not run.explained:
        yield "explanations (explain)"


def _template() -> jinja2.Template:
    here = Path(__file__).resolve().parent
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page.filters["interval"] = interval
    page.filters["words"] = _in_words
    return page.get_template("page.html.j2")


def _in_words(name: str) -> str:
    return name.replace("_", " ")
