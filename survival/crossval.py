"""Cross-validation of stage 2 and its rivals: the same subjects, folds, landmarks and estimators for all.

No PyTorch: the T-LSTM comes as a function. Times in years.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.splits import assign_folds
from runs.files import finite_or_none, written_whole
from survival.cox import ridge_cox
from survival.estimands import Prediction, read_curves
from survival.estimates import Reference, concordance
from survival.landmarks import Histories
from survival.link import fit_link, inner_folds, landmark_sets, split_rows
from survival.metrics import VALUE_ALONE, EvaluationSettings, evaluate
from survival.predictor import Predictor
from survival.preparation import Preparation

FIGURES = ("c_index", "auc", "ibs")
OURS = "tlstm"
COLOURS = ("#0072b2", "#e69f00", "#d55e00")
POINTS = 20  # of a survival curve within a window
logger = logging.getLogger(__name__)
Predict = Callable[[pd.DataFrame, float, np.ndarray], pd.DataFrame]  # visits, landmark, years
Fit = Callable[[pd.DataFrame, np.ndarray], Predict]  # visits, (S, N) validation


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is cross-validated."""

    landmarks: tuple[float, ...]
    windows: tuple[float, ...]  # years ahead, one for each landmark
    folds: int
    repeats: int
    num_seeds: int
    seed: int


def compare_models(
    table: pd.DataFrame, arms: Mapping[str, Fit], plan: Plan, *, progress: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit every arm on each training part and evaluate it on the held-out subjects.

    Args:
        table: visits in memory's columns, sorted by subject and visit.
        arms: by name.
        plan: landmarks, windows, folds.
        progress: show a bar on stderr.
    Returns:
        The figures: `repeat, fold, landmark, window, model, test_share, c_index, auc, ibs`; and the
        predictions of our model for the held-out subjects.
    """
    subjects = table.drop_duplicates("subject")
    names, event = subjects["subject"].to_numpy(str), subjects["event"].to_numpy(bool)
    rng = np.random.default_rng(plan.seed)
    figures, predicted = [], []
    bar = tqdm(total=plan.repeats * plan.folds * len(arms), desc="cross-validation", unit="fit", disable=not progress)
    with bar:
        for repeat in range(1, plan.repeats + 1):
            fold_of = assign_folds(event, plan.folds, rng)
            for fold in range(plan.folds):
                held = np.isin(table["subject"].to_numpy(str), names[fold_of == fold])
                train, test = table[~held].reset_index(drop=True), table[held].reset_index(drop=True)
                validation = inner_folds(event[fold_of != fold], plan.num_seeds, rng)
                for model, fit in arms.items():
                    predict = fit(train, validation)
                    place = {"repeat": repeat, "fold": fold + 1, "model": model}
                    for landmark, window in zip(plan.landmarks, plan.windows, strict=True):
                        found, said = _evaluate(predict, train, test, landmark, window)
                        figures.append(place | found)
                        if model == OURS:
                            predicted.append(said.assign(split=f"repeat{repeat}_fold{fold + 1}"))
                    bar.update()
    return pd.DataFrame(figures), pd.concat(predicted, ignore_index=True)


def _evaluate(predict: Predict, train, test, landmark: float, window: float) -> tuple[dict, pd.DataFrame]:
    """C truncated at the window, AUC at its end, IBS over it."""
    years = window * np.arange(1, POINTS + 1) / POINTS
    seen, said = predict(train, landmark, years), predict(test, landmark, years)
    place = {"landmark": landmark, "window": window, "test_share": len(said) / len(seen)}
    if said.empty:  # nobody of the fold is at risk there
        return place | dict.fromkeys(FIGURES, np.nan), said
    time, event, log_hazard = (said[name].to_numpy() for name in ("time", "event", "log_hazard"))
    settings = EvaluationSettings((window,), num_resamples=VALUE_ALONE, seed=0)
    found = evaluate(Prediction.of(said), Reference.of(seen), settings)
    truncated = np.minimum(time, window), event & (time <= window)
    return place | {
        "c_index": concordance(log_hazard, *truncated),
        "auc": _number(found["auc"][str(float(window))]),
        "ibs": _number(found["ibs"]),
    }, said


def _number(estimate: Mapping) -> float:
    return np.nan if estimate["value"] is None else estimate["value"]


# ---- The rivals ------------------------------------------------------------------------------------
def linear_arm(
    columns: Sequence[str], penalties: Sequence[float], grid: Sequence[float], *, baseline_only: bool = False
) -> Fit:
    """Ridge Cox on the last values, its penalty chosen on inner folds, then fitted on all training subjects.

    Args:
        columns: features.
        penalties: to choose from.
        grid: the landmarks it is trained at together, stratified (van Houwelingen 2007); empty: at each
            landmark that is asked for, by itself.
        baseline_only: use the first visit alone.
    Returns:
        An arm of `cross_validate`.
    """

    def cut(table: pd.DataFrame) -> pd.DataFrame:
        return table.drop_duplicates("subject").reset_index(drop=True) if baseline_only else table

    def fit(table: pd.DataFrame, validation: np.ndarray) -> Predict:
        table = cut(table)
        prepare = Preparation.fit(table, columns, num_components=0)

        def trained(landmarks: tuple[float, ...]) -> Predictor:
            data = Histories.of(table, prepare, landmarks)
            splits = split_rows(data.landmarks, validation)
            penalty = min(penalties, key=lambda penalty: fit_link(data.last_values, splits, penalty)[0])
            link = ridge_cox(data.last_values, landmark_sets(data.landmarks), penalty)[None]
            return Predictor(prepare, landmarks, link).calibrated(table, np.zeros_like(validation))

        models: dict[float, Predictor] = {}
        supermodel = trained(tuple(grid)) if len(grid) else None

        def predict(table: pd.DataFrame, landmark: float, years: np.ndarray) -> pd.DataFrame:
            model = supermodel or models.get(landmark) or trained((landmark,))
            models[landmark] = model
            return model.predict(cut(table), (landmark,), years=years)

        return predict

    return fit


# ---- What came out -----------------------------------------------------------------------------------
def summarise(figures: pd.DataFrame) -> dict[str, dict]:
    """Mean and deviation over the folds, and what our model gains on each rival.

    Args:
        figures: of `cross_validate`.
    Returns:
        `{"<landmark>+<window>": {"<model>": {figure: {"value", "sd", "folds"}}, "difference": {"<rival>":
        {figure: {"value", "se", "folds"}}}}}`; `folds` have the figure, null: too few do. The difference is ours
        minus the rival's, its error corrected for folds that share training subjects:
        variance * (1 / folds + test / train).
    Source: Nadeau and Bengio (2003), Machine Learning 52, eq. 5.
    """
    found: dict[str, dict] = {}
    for (landmark, window), here in figures.groupby(["landmark", "window"]):
        models = {str(name): part.set_index(["repeat", "fold"]) for name, part in here.groupby("model", sort=False)}
        summary: dict[str, dict] = {
            name: {figure: _estimate(part[figure], "sd", part[figure].std()) for figure in FIGURES}
            for name, part in models.items()
        }
        ours = models[OURS]
        summary["difference"] = {
            rival: {figure: _difference(ours[figure] - part[figure], ours["test_share"]) for figure in FIGURES}
            for rival, part in models.items()
            if rival != OURS
        }
        found[f"{landmark:g}+{window:g}"] = summary
    return found


def _difference(gain: pd.Series, test_share: pd.Series) -> dict[str, float | int | None]:
    variance = gain.var() * (1 / max(gain.count(), 1) + test_share.mean())
    return _estimate(gain, "se", np.sqrt(variance))


def _estimate(values: pd.Series, name: str, spread: float) -> dict[str, float | int | None]:
    return {
        "value": finite_or_none(values.mean()),
        name: finite_or_none(spread),
        "folds": int(values.count()),
    }


def as_text(summary: Mapping[str, Mapping]) -> str:
    """The summary as lines for a terminal."""
    lines = []
    for place, models in summary.items():
        landmark, window = place.split("+")
        lines.append(f"\nlandmark {landmark} years, window {window} years{'C':>10}{'AUC':>16}{'IBS':>16}")
        for name, estimates in models.items():
            if name != "difference":
                lines.append(f"  {name:<30}" + "  ".join(_plain(estimates[figure], "sd") for figure in FIGURES))
        for rival, estimates in models["difference"].items():
            what = f"tlstm - {rival}"
            lines.append(f"  {what:<30}" + "  ".join(_plain(estimates[figure], "se", "+") for figure in FIGURES))
    return "\n".join(lines)


def _plain(estimate: Mapping, spread: str, sign: str = "") -> str:
    if estimate["value"] is None or estimate[spread] is None:
        return f"{'-':>14}"
    return f"{estimate['value']:{sign}6.3f} ({estimate[spread]:.3f})"


def draw_curves(predicted: pd.DataFrame, path: str | Path) -> None:
    """Thirds of predicted risk at each landmark: what was predicted, and what then happened (Kaplan-Meier).

    Args:
        predicted: our model's predictions for the held-out subjects.
        path: PNG.
    """
    from lifelines import KaplanMeierFitter
    from matplotlib.figure import Figure

    landmarks = sorted(predicted["landmark"].unique())
    figure = Figure(figsize=(4.2 * len(landmarks), 3.6), layout="constrained")
    for axes, landmark in zip(figure.subplots(1, len(landmarks), squeeze=False)[0], landmarks, strict=True):
        here = predicted[predicted["landmark"] == landmark].dropna(axis=1, how="all")
        years, survival = read_curves(here)
        third = pd.qcut(here["log_hazard"].rank(method="first"), 3, labels=False).to_numpy()
        for number, (name, colour) in enumerate(zip(("low", "middle", "high"), COLOURS, strict=True)):
            group = here[third == number]
            seen = KaplanMeierFitter().fit(group["time"], group["event"]).survival_function_at_times(years)
            axes.step(years, seen, where="post", color=colour, label=f"{name} risk, seen")
            axes.plot(years, survival[third == number].mean(axis=0), "--", color=colour, label="predicted")
        axes.set(title=f"from year {landmark:g}", xlabel="years from the landmark", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("event-free")
    with written_whole(path) as part:
        figure.savefig(part, dpi=150)
