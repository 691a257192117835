"""A run's folder with plausible files, for the tests of the page: `write_run(folder)`."""

import numpy as np
import pandas as pd
from PIL import Image

from runs.files import write_json
from survival.estimates import Reference, breslow, survival_curves
from survival.metrics import EvaluationSettings, Prediction, evaluate

GRID = np.arange(0.5, 5.01, 0.5)
HORIZONS = (2.0, 3.0, 5.0)
PARTS = np.repeat(["train", "val", "test"], [60, 20, 40])


def write_run(folder, *, noise=None, num_resamples=100):
    """Write what a whole run of 120 simulated subjects leaves behind.

    Args:
        folder: made if need be.
        noise: of each model's log-hazard, by name; by default the T-LSTM is the best.
        num_resamples: of the bootstrap.
    """
    noise = noise or {"cnn": 1.2, "tlstm": 0.2, "cox_last_slope": 1.1}
    rng = np.random.default_rng(0)
    truth = rng.normal(size=len(PARTS))
    event_time, last_seen = rng.exponential(4 * np.exp(-2 * truth)) + 0.1, rng.uniform(1, 8, len(PARTS))
    time, event = np.minimum(event_time, last_seen), event_time <= last_seen
    risks = {name: truth + sd * rng.normal(size=len(truth)) for name, sd in noise.items()}
    figures = {name: _figures(risk, time, event, num_resamples) for name, risk in risks.items()}
    write_json(
        folder / "metrics.json",
        {
            "cnn": figures.pop("cnn"),
            "tlstm": figures.pop("tlstm"),
            "baselines": figures,
            "oracle": {"longitudinal": _figures(truth, time, event, num_resamples)["test"]["c_index"]},
        },
    )
    names = [f"S{i:03d}" for i in range(len(PARTS))]
    _write_predictions(folder, names, risks["tlstm"], time, event, rng)
    _write_splits(folder, names, time, event)
    _write_histories(folder)
    _write_explanation(folder / "explain" / "S100_v2", rng)
    settings = {
        "COHORT_CSV": None,
        "TRAIN_CSV": None,
        "TIME_UNIT": "years",
        "LOSS": "cox",
        "NUM_RESAMPLES": num_resamples,
    }
    stages = {"cnn": {"done": True, "seconds": 12.34}, "tlstm": {"done": False}}
    record = {
        "settings": settings,
        "seed": 7,
        "versions": {"numpy": "2"},
        "commit": "0123456789abcdef+",
        "stages": stages,
    }
    write_json(folder / "config.json", record)
    (folder / "run.log").write_text("2026-01-31 12:00:00,000 WARNING main: <b>odd</b>\n" * 3)


def _figures(log_hazard, time, event, num_resamples):
    """The figures of the test part, as `metrics.json` has them."""
    train, test = PARTS == "train", PARTS == "test"
    reference = Reference(time[train], event[train], float(np.median(log_hazard[train])))
    curves = _curves(log_hazard, time, event)
    prediction = Prediction(log_hazard[test], time[test], event[test], curves[test], GRID)
    return {"test": evaluate(prediction, reference, EvaluationSettings(HORIZONS, num_resamples, seed=0))}


def _curves(log_hazard, time, event):
    """Survival curves (N, T) with Breslow's baseline of the training part."""
    train = PARTS == "train"
    return survival_curves(breslow(log_hazard[train], time[train], event[train]), log_hazard, GRID)


def _write_predictions(folder, names, log_hazard, time, event, rng):
    table = pd.DataFrame(
        {
            "subjectid": names,
            "split": PARTS,
            "landmark": 1.0,
            "time": time,
            "convert_status": event.astype(int),
            "log_hazard": log_hazard,
        }
    )
    for year, column in zip(GRID, _curves(log_hazard, time, event).T, strict=True):
        table[f"survival_{year}"] = column
    for visit, share in enumerate(rng.dirichlet([1, 2], len(names)).T, start=1):
        table[f"attention_{visit}"] = share
    (folder / "tlstm").mkdir()
    table.to_csv(folder / "tlstm" / "predictions.csv", index=False)


def _write_splits(folder, names, time, event):
    (folder / "splits").mkdir()
    visits = pd.DataFrame(
        {
            "subjectid": np.repeat(names, 2),
            "imageid": [f"{name}_v{visit}" for name in names for visit in (1, 2)],
            "visit_time": np.tile([0.0, 1.0], len(names)),
            "time": np.repeat(time + 1, 2),
            "convert_status": np.repeat(event.astype(int), 2),
        }
    )
    for part in ("train", "val", "test"):
        visits[np.repeat(PARTS == part, 2)].to_csv(folder / "splits" / f"{part}.csv", index=False)


def _write_histories(folder):
    (folder / "cnn").mkdir()
    cnn = {"epoch": [1, 2, 3], "loss": [2.0, 1.5, 1.2], "val_loss": [3.0, 2.8, 2.9], "val_c_index": [0.6, 0.7, 0.65]}
    pd.DataFrame(cnn).to_csv(folder / "cnn" / "history.csv", index=False)
    tlstm = {"epoch": [0, 1, 2], "train_loss": [3.0, 2.9, 2.8], "val_loss": [2.0, 1.8, 1.9]}
    pd.DataFrame(tlstm).to_csv(folder / "tlstm" / "history.csv", index=False)


def _write_explanation(folder, rng):
    folder.mkdir(parents=True)
    pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "shap.png")
    Image.fromarray(pixels).save(folder / "gradcam_3d.gif")
    (folder / "shap.html").write_text("<!DOCTYPE html><p id='inside'>\"viewer\" & more</p>")
    (folder / "regions.csv").write_text(
        "label,region,attribution,share\n1,elsewhere,0.01,\n2,left hippocampus,-0.51234,0.4\n"
    )
    write_json(folder / "metrics.json", {"shap": {"stability": 0.91234, "localisation": {"auc": None}}})
