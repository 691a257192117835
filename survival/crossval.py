"""Cross-validation of stage 2 against its rivals: the same subjects, folds, landmarks and metrics for every model.

No PyTorch: the T-LSTM comes as a function. A rival is a model that ours is compared with. Shapes: N subjects, S seeds,
T points of a survival curve. Times are years.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.splits import assign_folds
from cohort.tables import write_csv
from runs.errors import InputError
from runs.files import finite_or_none, written_whole
from survival.estimands import Prediction, read_curves
from survival.estimates import Reference, concordance
from survival.kept_fits import Fit, KeptFits
from survival.link import inner_folds
from survival.metrics import VALUE_ALONE, EvaluationSettings, evaluate
from survival.predictor import Predictor, write_predictions

FIGURES = ("c_index", "auc", "ibs")
OUR_MODEL = "tlstm"
COLOURS = ("#0072b2", "#e69f00", "#d55e00")
CURVES_DPI = 150  # pixels an inch of `curves.png`
POINTS = 20  # of a survival curve within a window
Predict = Callable[[pd.DataFrame, float, np.ndarray], pd.DataFrame]  # visits, landmark, (T,) years -> predictions
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that was fitted to the training subjects of a fold."""

    predict: Predict
    history: pd.DataFrame | None = None  # of the training, a row an epoch

    @classmethod
    def of(cls, predictor: Predictor, history: pd.DataFrame | None = None) -> "Trained":
        """Take a predictor of stage 2 with the history of its training, a row an epoch; None or empty: it has none."""
        known = history if history is not None and len(history) else None
        return cls(lambda visits, landmark, years: predictor.predict(visits, (landmark,), years=years), known)


class LastFit:
    """The predictor that was fitted last, whose arms are models too: they need no fit of their own."""

    def __init__(self) -> None:
        self.train: pd.DataFrame | None = None
        self.predictor: Predictor | None = None

    def keep(self, train: pd.DataFrame, predictor: Predictor) -> None:
        """Keep a predictor and the table that it was fitted to."""
        self.train, self.predictor = train, predictor

    def arm(self, name: str, train: pd.DataFrame) -> Trained | None:
        """An arm of the last predictor; None: it has no such arm, or was fitted to another table."""
        if self.predictor is None or self.train is not train or name not in self.predictor.arms:
            return None
        return Trained.of(self.predictor.arms[name])


Model = Callable[[pd.DataFrame, np.ndarray], Trained]  # fits: visits of N subjects, (S, N) bool validation


# ---- The comparison ------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Plan:
    """What is cross-validated."""

    landmarks: tuple[float, ...]  # years from baseline
    windows: tuple[float, ...]  # years ahead that are evaluated, one for each landmark
    folds: int  # of the subjects
    repeats: int  # cross-validations, each with another assignment to folds
    num_seeds: int  # S
    seed: int

    @classmethod
    def of(cls, settings: Any) -> "Plan":
        """Take the plan from a run's settings.

        Args:
            settings: has the attributes FOLDS, REPEATS, LANDMARKS, WINDOWS, FEATURES, NUM_SEEDS, SEED.
        Returns:
            The plan.
        Raises:
            InputError: the settings don't fit together.
        """
        landmarks, windows, folds, features = (
            getattr(settings, name) for name in ("LANDMARKS", "WINDOWS", "FOLDS", "FEATURES")
        )
        if features is None or folds == 1 or not 0 < len(landmarks) == len(windows):
            raise InputError(
                "FOLDS: expected 2 or more, a table FEATURES, LANDMARKS, and as many WINDOWS. Received: "
                f"FOLDS {folds}, FEATURES {features}, LANDMARKS {landmarks}, WINDOWS {windows}"
            )
        return cls(landmarks, windows, folds, settings.REPEATS, settings.NUM_SEEDS, settings.SEED)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """One fold: the visits to train on and to test on, and the subjects that each seed is validated on."""

    repeat: int  # from 1
    number: int  # from 1
    train: pd.DataFrame
    test: pd.DataFrame
    validation: np.ndarray  # (S, subjects of train) bool

    @property
    def name(self) -> str:
        """The fold in one word."""
        return f"repeat{self.repeat}_fold{self.number}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a cross-validation gives, a row a fold and model and more."""

    figures: pd.DataFrame  # `repeat, fold, landmark, window, model, test_share, c_index, auc, ibs`
    predictions: pd.DataFrame  # of every model for the held-out subjects: `split` names the fold, `model` the model
    histories: pd.DataFrame  # of the trainings that have one: `repeat, fold, model`, a row an epoch

    def write(self, folder: Path) -> None:
        """Write `figures.csv`, `history.csv`, `predictions.csv` and `curves.png` into a folder, whole."""
        write_csv(self.figures, folder / "figures.csv")
        write_csv(self.histories, folder / "history.csv")
        write_predictions(self.predictions, folder / "predictions.csv")
        draw_curves(self.predictions[self.predictions["model"] == OUR_MODEL], folder / "curves.png")


def compare_models(
    table: pd.DataFrame,
    models: Mapping[str, Model],
    plan: Plan,
    *,
    kept: KeptFits | None = None,
    progress: bool = False,
) -> Comparison:
    """Fit every model on each training part and evaluate it on the held-out subjects.

    Args:
        table: visits in memory's columns, sorted by subject and visit.
        models: ours, called OUR_MODEL, and its rivals, by name.
        plan: landmarks and windows in years, folds, repeats.
        kept: keeps each finished fit, and has those of a stopped comparison of the same table, models and plan.
        progress: show a bar on stderr.
    Returns:
        Figures, predictions and histories; the same bits, whatever was kept.
    """
    fits: list[tuple[_Fold, str, Fit]] = []
    num_fits = plan.repeats * plan.folds * len(models)
    if kept is not None and (num_kept := kept.count()):
        logger.info("%d of %d fits were finished before, and are kept", num_kept, num_fits)
    with tqdm(total=num_fits, desc="cross-validation", unit="fit", disable=not progress) as bar:
        for fold in _folds(table, plan):  # drawn for kept fits too, so that the later ones stay the same
            for name, model in models.items():
                make = functools.partial(_fit_and_evaluate, model, fold, plan)
                fit = make() if kept is None else kept.read_or_make(f"{fold.name}_{name}", make)
                fits.append((fold, name, fit))
                bar.update()
    return _collect(fits)


def _collect(fits: Sequence[tuple[_Fold, str, Fit]]) -> Comparison:
    """The tables of all fits, in their order, each row with its fold and its model."""
    figures, predictions, histories = [], [], [pd.DataFrame()]
    for fold, model, fit in fits:
        place = {"repeat": fold.repeat, "fold": fold.number, "model": model}
        figures += [place | row for row in fit.figures]
        predictions.append(fit.predictions.assign(split=fold.name, model=model))
        if fit.history is not None:
            histories.append(pd.DataFrame(place, fit.history.index).join(fit.history))
    return Comparison(
        pd.DataFrame(figures), pd.concat(predictions, ignore_index=True), pd.concat(histories, ignore_index=True)
    )


def _fit_and_evaluate(model: Model, fold: _Fold, plan: Plan) -> Fit:
    """Train a model in a fold; its figures and predictions at each landmark."""
    trained = model(fold.train, fold.validation)
    places = zip(plan.landmarks, plan.windows, strict=True)
    evaluated = [_evaluate(trained.predict, fold, landmark, window) for landmark, window in places]
    predictions = pd.concat([predicted for _, predicted in evaluated], ignore_index=True)
    return Fit([figures for figures, _ in evaluated], predictions, trained.history)


def _folds(table: pd.DataFrame, plan: Plan) -> Iterator[_Fold]:
    """Draw the folds, one after another; every subject is in one test part of each repeat."""
    subjects = table.drop_duplicates("subject")
    names, event = subjects["subject"].to_numpy(str), subjects["event"].to_numpy(bool)
    rng = np.random.default_rng(plan.seed)
    for repeat in range(1, plan.repeats + 1):
        fold_of = assign_folds(event, plan.folds, rng)
        for fold in range(plan.folds):
            is_test = np.isin(table["subject"].to_numpy(str), names[fold_of == fold])
            train, test = table[~is_test].reset_index(drop=True), table[is_test].reset_index(drop=True)
            validation = inner_folds(event[fold_of != fold], plan.num_seeds, rng)
            yield _Fold(repeat, fold + 1, train, test, validation)


def first_training_part(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The visits that the first fold is trained on: what is looked at before all folds."""
    return next(_folds(table, plan)).train


def _evaluate(predict: Predict, fold: _Fold, landmark: float, window: float) -> tuple[dict[str, float], pd.DataFrame]:
    """The figures of a fold, and its predictions: C truncated at the window, AUC at its end, IBS over it."""
    years = window * np.arange(1, POINTS + 1) / POINTS
    of_train, of_test = predict(fold.train, landmark, years), predict(fold.test, landmark, years)
    place = {"landmark": landmark, "window": window, "test_share": len(of_test) / len(of_train)}
    if of_test.empty:  # no subject of the fold is at risk at the landmark
        return place | dict.fromkeys(FIGURES, np.nan), of_test
    time, event, log_hazard = (of_test[name].to_numpy() for name in ("time", "event", "log_hazard"))
    settings = EvaluationSettings((window,), num_resamples=VALUE_ALONE, seed=0)
    metrics = evaluate(Prediction.of(of_test), Reference.of(of_train), settings)
    truncated = np.minimum(time, window), event & (time <= window)
    return place | {
        "c_index": concordance(log_hazard, *truncated),
        "auc": _value_or_nan(metrics["auc"][str(float(window))]),
        "ibs": _value_or_nan(metrics["ibs"]),
    }, of_test


def _value_or_nan(estimate: Mapping) -> float:
    return np.nan if estimate["value"] is None else estimate["value"]


# ---- The summary ---------------------------------------------------------------------------------
def summarise(figures: pd.DataFrame) -> dict[str, dict]:
    """Average the figures over the folds, and what our model gains on each rival.

    Args:
        figures: of `compare_models`; a row a fold, landmark and model.
    Returns:
        `{"<landmark>+<window>": {"<model>": {figure: {"value", "sd", "folds"}}, "difference": {"<rival>":
        {figure: {"value", "se", "folds"}}}}}`; landmark and window are years, and `folds` counts the folds that have
        the figure. A value is null if no fold has the figure, an error if one fold or none has it. The difference is
        ours minus the rival's. Its error is corrected for folds that share training subjects:
        variance * (1 / folds + test / train).
    Source: Nadeau and Bengio (2003), Machine Learning 52, eq. 5.
    """
    return {
        f"{landmark:g}+{window:g}": _summarise_models(rows)
        for (landmark, window), rows in figures.groupby(["landmark", "window"])
    }


def _summarise_models(figures: pd.DataFrame) -> dict[str, dict]:
    """The summary of one landmark."""
    models = {str(name): rows.set_index(["repeat", "fold"]) for name, rows in figures.groupby("model", sort=False)}
    summary: dict[str, dict] = {
        name: {figure: _estimate(rows[figure], "sd", rows[figure].std()) for figure in FIGURES}
        for name, rows in models.items()
    }
    ours = models[OUR_MODEL]
    summary["difference"] = {
        rival: {figure: _difference(ours[figure] - rows[figure], ours["test_share"]) for figure in FIGURES}
        for rival, rows in models.items()
        if rival != OUR_MODEL
    }
    return summary


def _difference(gain: pd.Series, test_share: pd.Series) -> dict[str, float | int | None]:
    """Mean of the gains of the folds, and its corrected standard error."""
    variance = gain.var() * (1 / max(gain.count(), 1) + test_share.mean())
    return _estimate(gain, "se", np.sqrt(variance))


def _estimate(values: pd.Series, name: str, spread: float) -> dict[str, float | int | None]:
    """Mean over the folds, its spread under `name`, and the number of folds that have a value."""
    return {
        "value": finite_or_none(values.mean()),
        name: finite_or_none(spread),
        "folds": int(values.count()),
    }


def as_text(summary: Mapping[str, Mapping]) -> str:
    """Format the summary for a terminal.

    Args:
        summary: of `summarise`.
    Returns:
        Lines: for each landmark (years) a header, a row a model, and a row a difference.
    """
    lines = []
    for place, models in summary.items():
        landmark, window = place.split("+")
        lines.append(f"\nlandmark {landmark} years, window {window} years{'C':>10}{'AUC':>16}{'IBS':>16}")
        for name, estimates in models.items():
            if name != "difference":
                lines.append(f"  {name:<30}" + "  ".join(_as_cell(estimates[figure], "sd") for figure in FIGURES))
        for rival, estimates in models["difference"].items():
            name = f"{OUR_MODEL} - {rival}"
            lines.append(f"  {name:<30}" + "  ".join(_as_cell(estimates[figure], "se", "+") for figure in FIGURES))
    return "\n".join(lines)


def _as_cell(estimate: Mapping, spread: str, sign: str = "") -> str:
    """A value with its spread in brackets, or a dash."""
    if estimate["value"] is None or estimate[spread] is None:
        return f"{'-':>14}"
    return f"{estimate['value']:{sign}6.3f} ({estimate[spread]:.3f})"


def _curves_of(predicted: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ascending years (T,) and survival (N, T) of one landmark, whose window may have other years than the others."""
    years, survival = read_curves(predicted.dropna(axis=1, how="all"))
    ascending = np.argsort(years)
    return years[ascending], survival[:, ascending]


def draw_curves(predicted: pd.DataFrame, path: str | Path) -> None:
    """Draw the mean predicted survival of the thirds of risk at each landmark, beside their Kaplan-Meier curves.

    Args:
        predicted: our model's predictions for the held-out subjects; times and landmarks in years.
        path: of the PNG.
    """
    from lifelines import KaplanMeierFitter
    from matplotlib.figure import Figure

    landmarks = sorted(predicted["landmark"].unique())
    figure = Figure(figsize=(4.2 * len(landmarks), 3.6), layout="constrained")
    for axes, landmark in zip(figure.subplots(1, len(landmarks), squeeze=False)[0], landmarks, strict=True):
        at_landmark = predicted[predicted["landmark"] == landmark]
        years, survival = _curves_of(at_landmark)
        third = pd.qcut(at_landmark["log_hazard"].rank(method="first"), 3, labels=False).to_numpy()
        for number, (name, colour) in enumerate(zip(("low", "middle", "high"), COLOURS, strict=True)):
            group = at_landmark[third == number]
            observed = KaplanMeierFitter().fit(group["time"], group["event"]).survival_function_at_times(years)
            axes.step(years, observed, where="post", color=colour, label=f"{name} risk, seen")
            axes.plot(years, survival[third == number].mean(axis=0), "--", color=colour, label="predicted")
        axes.set(title=f"from year {landmark:g}", xlabel="years from the landmark", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("event-free")
    with written_whole(path) as part:
        figure.savefig(part, dpi=CURVES_DPI)
