"""A run as one page: `report.html`, which opens offline, and its figures as SVG and PNG.

The page is made from the run's folder alone. It says what the run does not have.
"""

import base64
import io
import itertools
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from cohort.splits import PARTS
from reporting import figures
from reporting.change_section import change_section, draw_change
from reporting.page_figures import draw_figures
from reporting.page_models import model_tables, models_of, notes_of
from reporting.run_folder import RunFolder
from reporting.words import in_words, interval, mean_and_sd
from runs.files import read_json, written_whole
from survival.crossval import CURVES_DPI
from survival.estimands import CURVE_COLUMN
from survival.evaluation import MODEL_NAMES

TEMPLATE = "page.html.j2"
MOST_BYTES = 14 * 2**20  # of pictures in the page: a mail takes 15 MiB
WEBP_QUALITY = 88  # of 100
MEDIA = {".svg": "image/svg+xml", ".png": "image/webp", ".gif": "image/gif"}
MOST_REGIONS = 12  # rows of regions.csv
HISTORY = "region_by_visit"  # a picture of several panels
PICTURES = {  # by the file's name, what a picture of an explanation shows
    "shap": "SHAP map, smoothed, in slices of the three planes",
    "gradcam": "Grad-CAM map in slices of the three planes",
    "hirescam": "HiResCAM map in slices of the three planes",
    "shap_3d": "SHAP map, moving through the three planes",
    "gradcam_3d": "Grad-CAM map, moving through the three planes",
    HISTORY: "Worth of each region at each visit to the log-hazard and the risk, and of each visit and value",
    "mean": "Mean SHAP map in slices of the three planes",
    "consistency": "Share of subjects with a SHAP value above 0 less the share below, in slices of the three planes",
}
OWN_SCALE = "On its own colour scale."
COHORT_FOLDER, COHORT_TITLE = "explained_cohort", "Many test subjects together"
PIXELS_AN_INCH = 120  # of a figure on the page
CURVES = {  # of the cross-validation
    "name": "cv_curves",
    "section": "figures",
    "title": "Cross-validation: survival by thirds of risk",
    "caption": "Held-out subjects of all folds and repeats, in thirds of stage 2's log-hazard at each landmark: the "
    "mean predicted survival (dashed) beside what was seen (Kaplan-Meier).",
}
FEW_EVENTS = 100  # Vergouwe et al. (2005): fewer can hardly tell a good model from a middling one


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.svg|png` from what the run's folder holds.

    Args:
        folder: the run's OUTPUT_DIR; every stage's files are optional.
    Returns:
        The page's path. It is one file that loads nothing from elsewhere, of less than 15 MiB.
    Raises:
        InputError: a JSON file of the run can't be read.
    """
    run, inlined = RunFolder.read(Path(folder)), Inlined(MOST_BYTES)
    drawn = list(_save_figures(run, inlined))
    _remove_figures(run.folder / "figures", {figure["name"] for figure in drawn})
    page = render(run, drawn, inlined)
    with written_whole(run.folder / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return run.folder / "report.html"


def render(run: RunFolder, drawn: list[dict[str, Any]], inlined: "Inlined") -> str:
    """Render the page as text.

    Args:
        run: what the page shows.
        drawn: its figures: `name, title, caption, width` (pixels), `section` and `uri`, or None if it did not fit.
        inlined: takes the explanations' pictures.
    Returns:
        HTML.
    """
    explained = [_explanation(folder, inlined) for folder in run.explained]
    return _template().render(
        run=run,
        names=MODEL_NAMES,
        headlines=[headline for title, view in run.views.items() for headline in _headlines(view, title)],
        caveats=list(_caveats(run)),
        missing=list(_missing(run)),
        progress=_progress(run),
        models=(models := model_tables(run)),
        notes=notes_of(models),
        figures=drawn,
        change=change_section(run, inlined),
        subjects=_subjects(run),
        explained=explained,
        of_visits={name for scan in explained for name in scan["of_visits"]},
        left_out=inlined.left_out,
        own_settings=list(_own_settings(run)),
    )


def _save_figures(run: RunFolder, inlined: "Inlined") -> Iterator[dict[str, Any]]:
    """Save every figure of the run; what the page needs of each."""
    for shown in itertools.chain(draw_figures(run), draw_change(run)):
        path = figures.save(shown.figure, run.folder / "figures", shown.name)
        yield {
            "name": shown.name,
            "title": shown.title,
            "caption": shown.caption,
            "width": round(shown.figure.get_figwidth() * PIXELS_AN_INCH),
            "uri": inlined.uri(path),
            "section": shown.section,
        }
    if (curves := run.folder / "cv" / "curves.png").is_file():
        with Image.open(curves) as picture:
            inches = picture.width / CURVES_DPI
        yield {**CURVES, "width": round(inches * PIXELS_AN_INCH), "uri": inlined.uri(curves)}


def _remove_figures(folder: Path, names: Container[str]) -> None:
    """Remove figures of an earlier page that this one does not have."""
    for path in [path for suffix in ("svg", "png") for path in folder.glob(f"*.{suffix}")]:
        if path.stem not in names:
            path.unlink()


# ---- Numbers -------------------------------------------------------------------------------------------
def _headlines(run: RunFolder, where: str) -> Iterator[tuple[str, str, str]]:
    """For each headline its name, its number, and what the number is of; at a landmark, `where`, the C-index alone."""
    for name, in_full in MODEL_NAMES.items():
        test = _test_metrics(run, name)
        if test is not None:
            number = f"{test['n']} test subjects, {test['events']} events"
            yield f"C-index, {in_full}", interval(test["c_index"]), f"{where}: {number}" if where else number
    if run.stage2_test is not None and not where:
        for year, estimate in run.stage2_test["auc"].items():
            yield f"AUC at {float(year):g} years", interval(estimate), "history, test part"
        yield "hazard ratio, high to low risk", interval(run.stage2_test["hazard_ratio"], 1), "history, test part"
    for place, models in run.metrics.get("cv", {}).items():
        estimate, (landmark, window) = models["tlstm"]["c_index"], place.split("+")
        yield "C-index, cross-validated", mean_and_sd(estimate), f"mean (sd), from year {landmark} over {window} years"


def _caveats(run: RunFolder) -> Iterator[str]:
    """What a reader must know before they believe the numbers."""
    if run.is_simulated:
        yield "The cohort is simulated. The figures say what the pipeline does, and nothing about patients."
    if run.metrics.get("progress", {}).get("alarm"):
        yield f"Progress may follow a scanner that drifts. {run.metrics['progress']['why']}"
    tested = [test for view in run.views.values() if (test := view.stage2_test or _test_metrics(view, "cnn"))]
    if not tested:
        return
    fewest = min(test["events"] for test in tested)
    if fewest < FEW_EVENTS:
        where = " at one of the landmarks" if len(tested) > 1 else ""
        yield (
            f"The test part has {fewest} events{where}. With fewer than about {FEW_EVENTS}, differences between "
            "models are mostly chance: look at the intervals."
        )
    yield (
        "Intervals are 95 %, from resampled test subjects, for this one split and these trained models. What another "
        "split or another training would change is not in them."
    )
    for where, view in run.views.items():
        if view.stage2_test is not None:
            caveats = _caveats_on_stage2(view, view.stage2_test)
            yield from (f"{where.capitalize()}: {caveat}" for caveat in caveats) if where else caveats
    if reasons := sorted(set(_reasons(tested))):
        yield f"Figures that could not be computed are left empty: {'; '.join(reasons)}."


def _caveats_on_stage2(run: RunFolder, test: dict[str, Any]) -> Iterator[str]:
    """Whether another model does better, and whether the predicted risks are too extreme or too cautious."""
    best = models_of(run)["rows"][0]
    if best["c_index"]["value"] is not None and best["name"] != MODEL_NAMES["tlstm"]:
        yield (
            f"Another model does better: the highest C-index of the test part, {best['c_index']['value']:.3f}, is that "
            f"of {best['name']}; that of stage 2 is {interval(test['c_index'], 3)}."
        )
    if run.has_idle_network:
        yield "The T-LSTM has no weight in the stack: what it attends to decides nothing, so it is not shown."
    for year, calibration in test["calibration"].items():
        slope = calibration["slope"]
        if slope["low"] is not None and slope["high"] is not None and not slope["low"] <= 1 <= slope["high"]:
            fault = "extreme" if slope["high"] < 1 else "cautious"
            yield f"Predicted risks at {float(year):g} years are too {fault}: calibration slope {interval(slope)}."


def _progress(run: RunFolder) -> str:
    """How well progress tells the time, and whether it may follow a scanner; empty if the run has none."""
    figures = run.metrics.get("progress", {})
    if figures.get("error") is None:
        return figures.get("why", "")
    verdict = {True: "Drift alarm", False: "No sign of a drift", None: "Whether a scanner drifts can't be told"}
    explained = (
        f"Progress explains {1 - figures['error']:.0%} of the time between visits of subjects that were left out."
    )
    return f"{explained} {verdict[figures['alarm']]}: {figures['why']}"


def _own_settings(run: RunFolder) -> Iterator[str]:
    """Of each stage that was made with other settings than those of the last command, which ones."""
    settings = run.record.get("settings", {})
    for name, stage in run.record.get("stages", {}).items():
        needs = {need: value for need, value in stage.get("needs", {}).items() if need in settings}
        own = [f"{need} {_setting(value)}" for need, value in needs.items() if value != settings[need]]
        if own:
            yield f"{name}: {', '.join(own)}"


def _setting(value: Any) -> str:
    """A setting's value as one types it."""
    return ",".join(map(str, value)) or "unset" if isinstance(value, list) else str(value)


def _test_metrics(run: RunFolder, model: str) -> dict[str, Any] | None:
    return run.metrics.get(model, {}).get("test")


def _reasons(metrics: Any) -> Iterator[str]:
    """Every `why` within a part's figures, at any depth."""
    if isinstance(metrics, dict):
        if "why" in metrics:
            yield metrics["why"]
        for value in metrics.values():
            yield from _reasons(value)
    elif isinstance(metrics, list):
        for value in metrics:
            yield from _reasons(value)


def _subjects(run: RunFolder) -> dict[str, Any]:
    """A row for each prediction of stage 2: the subject, the landmark, the prediction, its rate, the outcome."""
    years, rows = [], []
    rates = {} if run.change is None else dict(zip(run.change["subject"], run.change["rate"], strict=True))
    for view in run.views.values():
        if view.predicted is None or view.stage2_test is None:
            continue
        years = [year for year in view.stage2_test["auc"] if CURVE_COLUMN + year in view.predicted]
        cut = view.stage2_test["risk_groups"]["cut"]
        ordered = view.predicted.sort_values(["split", "log_hazard"], ascending=[True, False], kind="stable")
        rows += [
            {
                **row,
                "group": "high" if row["log_hazard"] > cut else "low",
                "rate": rates.get(row["subject"], np.nan),
                "risks": [1 - row[CURVE_COLUMN + year] for year in years],
            }
            for row in ordered.to_dict("records")
        ]
    return {"years": years, "rows": rows, "has_rates": run.population is not None}


# ---- Explanations ----------------------------------------------------------------------------------------
def _explanation(folder: Path, inlined: "Inlined") -> dict[str, Any]:
    """The pictures, the viewer and the evidence of one explained scan."""
    regions, title = _regions(folder / "regions.csv"), COHORT_TITLE if folder.name == COHORT_FOLDER else folder.name
    viewers = {path.stem: inlined.text(path) for path in sorted(folder.glob("*.html"))}
    files = [path for suffix in (".png", ".gif") for path in folder.glob(f"*{suffix}")]
    pictures = sorted(files, key=lambda path: (path.suffix == ".gif", not path.stem.startswith("shap"), path.name))
    return {
        "name": title,
        "viewers": {name: page for name, page in viewers.items() if page is not None},
        "pictures": [
            _picture(path, uri, title, regions) for path in pictures if (uri := inlined.uri(path)) is not None
        ],
        "evidence": list(_flatten(read_json(folder / "metrics.json"))),
        "regions": regions,
        "of_visits": _columns(folder / "visits.csv"),
    }


def _picture(path: Path, uri: str, title: str, regions: list[dict[str, str]]) -> dict[str, Any]:
    """A picture, its file's name, whether it moves, and in words what it shows of which scan."""
    shows = PICTURES.get(path.stem, in_words(path.stem))
    alternative = f"{shows}: {title}."
    if path.stem.startswith("shap") and regions and {"region", "attribution"} <= set(regions[0]):
        largest = regions[0]
        alternative += f" The region of the largest attribution is {largest['region']}, {largest['attribution']}."
    scale = "Each panel has its own colour scale; its numbers can be compared." if path.stem == HISTORY else OWN_SCALE
    return {
        "uri": uri,
        "file": path.name,
        "moves": path.suffix == ".gif",
        "shows": shows,
        "alternative": alternative,
        "scale": scale,
    }


def _regions(path: Path) -> list[dict[str, str]]:
    """The regions of the largest attributions, in words."""
    if not path.is_file():
        return []
    table = pd.read_csv(path).sort_values("attribution", key=np.abs, ascending=False, kind="stable")
    rows = table.drop(columns="label", errors="ignore").head(MOST_REGIONS).to_dict("records")
    return [{str(name): _cell(value) for name, value in row.items()} for row in rows]


def _columns(path: Path) -> list[str]:
    """The columns of a CSV; none if there is no such file."""
    return list(pd.read_csv(path, nrows=0).columns) if path.is_file() else []


def _flatten(evidence: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """`{"shap": {"localisation": {"auc": 0.9}}}` as `("shap, localisation, auc", "0.9")`."""
    for name, value in evidence.items():
        path = f"{above}, {in_words(name)}" if above else in_words(name)
        if isinstance(value, Mapping):
            yield from _flatten(value, path)
        else:
            yield path, _cell(value)


def _cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Inlined:
    """Files that become parts of the page while there is room; `left_out` names those that did not fit.

    Args:
        room: bytes that they may take together.
    """

    def __init__(self, room: int):
        self.room = room
        self.left_out: list[str] = []

    def uri(self, path: Path) -> str | None:
        """A picture as a data URI; a PNG becomes a WebP of a fifth of its bytes.

        Args:
            path: of the picture, `.svg`, `.png` or `.gif`.
        Returns:
            The URI; None if there is no room for it.
        """
        data, media = path.read_bytes(), MEDIA[path.suffix]
        if media == "image/webp":
            smaller = io.BytesIO()
            with Image.open(path) as picture:
                picture.convert("RGB").save(smaller, "WEBP", quality=WEBP_QUALITY)
            data = smaller.getvalue()
        text = base64.b64encode(data).decode()
        return f"data:{media};base64,{text}" if self._fits(path, len(text)) else None

    def text(self, path: Path) -> str | None:
        """The text of an interactive page.

        Args:
            path: of the page.
        Returns:
            Its HTML; None if there is no room for its bytes.
        """
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
    """The parts of the page that a run on scans has no files for; a run on a table is asked for none of them."""
    if run.is_of_table:
        return
    if not run.record:
        yield "its settings (config.json)"
    if len(run.splits) < len(PARTS):
        yield "the cohort (splits)"
    if run.cnn_history is None:
        yield "stage 1, one scan (cnn)"
    if run.predicted is None:
        yield "stage 2, the history (tlstm)"
    if not run.metrics:
        yield "figures of how good the models are (metrics.json)"
    if not run.explained:
        yield "explanations (explain)"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"interval": interval, "mean_and_sd": mean_and_sd, "words": in_words}
    return environment.get_template(TEMPLATE)
