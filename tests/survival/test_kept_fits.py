"""What a stopped cross-validation goes on from: the same bits, whatever was kept."""

import numpy as np
import pandas as pd
import pytest
from samples import random_table

from survival import crossval, rivals
from survival.kept_fits import Fit, KeptFits

PLAN = crossval.Plan(landmarks=(0.5, 1.0), windows=(2.0, 1.0), folds=3, repeats=2, num_seeds=2, seed=0)
NUM_FITS = 3 * 2 * 2


class Models:
    """Two linear models, one with a history, that count their fits and may be stopped in one of them."""

    def __init__(self, stop_at=None):
        self.num_fits, self.stop_at = 0, stop_at
        self.by_name = {crossval.OUR_MODEL: self.model((0.5, 1.0), 2), "locf_cox": self.model((), 0)}

    def model(self, grid, epochs):
        fit = rivals.linear_rival(["lab"], (0.1,), grid)

        def fit_and_count(table, validation):
            if self.num_fits == self.stop_at:
                raise KeyboardInterrupt
            self.num_fits += 1
            history = pd.DataFrame({"epoch": range(epochs), "val_loss": table["lab"].mean() / 3})
            return crossval.Trained(fit(table, validation).predict, history if epochs else None)

        return fit_and_count


@pytest.fixture
def table():
    return random_table(np.random.default_rng(5), num_subjects=60)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The files of a comparison that nobody stops, and that keeps nothing."""
    table = random_table(np.random.default_rng(5), num_subjects=60)
    return files_of(crossval.compare_models(table, Models().by_name, PLAN), tmp_path_factory.mktemp("unbroken"))


def files_of(compared, folder):
    compared.write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("stop_at", [0, 1, 4, NUM_FITS - 1])
def test_a_stopped_comparison_goes_on_to_the_same_bits(table, unbroken, tmp_path, caplog, stop_at):
    kept = KeptFits(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        crossval.compare_models(table, Models(stop_at).by_name, PLAN, kept=kept)
    assert kept.count() == stop_at
    models = Models()
    with caplog.at_level("INFO"):
        compared = crossval.compare_models(table, models.by_name, PLAN, kept=kept)
    assert models.num_fits == NUM_FITS - stop_at
    assert files_of(compared, tmp_path / "cv") == unbroken
    assert (f"{stop_at} of {NUM_FITS} fits were finished before, and are kept" in caplog.messages) == (stop_at > 0)


def test_all_models_predict_the_held_out_subjects_of_every_fold(table):
    predictions = crossval.compare_models(table, Models().by_name, PLAN).predictions
    rows = {model: of_model.drop(columns="log_hazard") for model, of_model in predictions.groupby("model")}
    who = [of_model[["subject", "split", "landmark"]].reset_index(drop=True) for of_model in rows.values()]
    assert list(rows) == ["locf_cox", "tlstm"]
    pd.testing.assert_frame_equal(*who)
    assert predictions["split"].nunique() == 6


# ---- The files -----------------------------------------------------------------------------------------
def fit(rng, *, num_rows=4, with_history=True):
    predictions = pd.DataFrame(
        {
            "subject": np.array(["007", "NA", "é ñ", "1.0"], dtype=object)[:num_rows],
            "landmark": 0.1 + 0.2,
            "event": np.array([True, False, True, False])[:num_rows],
            "log_hazard": rng.normal(size=num_rows) / 3,
            "survival_0.1": np.array([1e-300, np.nan, 1.0, 0.1])[:num_rows],
        }
    )
    history = pd.DataFrame({"epoch": [0, 1], "val_loss": rng.normal(size=2)}) if with_history else None
    return Fit([{"c_index": np.float64(1 / 3), "auc": float("nan"), "ibs": 0.1}], predictions, history)


def same(first, second):
    pd.testing.assert_frame_equal(pd.DataFrame(first.figures), pd.DataFrame(second.figures), check_exact=True)
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)
    assert (first.history is None) == (second.history is None)
    if first.history is not None:
        pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)


@pytest.mark.parametrize("kind", [{}, {"num_rows": 0}, {"with_history": False}, {"num_rows": 1}])
def test_a_kept_fit_has_the_same_bits(rng, tmp_path, kind):
    made, kept = fit(rng, **kind), KeptFits(tmp_path / "new")
    assert kept.read_or_make("a", lambda: made) is made
    same(kept.read_or_make("a", lambda: pytest.fail("it is kept")), made)
    assert kept.count() == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"not a table",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        lambda whole: whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
        lambda whole: whole + b" ",
    ],
)
def test_a_damaged_fit_is_made_anew_with_a_warning(rng, tmp_path, caplog, damage):
    made, kept, path = fit(rng), KeptFits(tmp_path), tmp_path / "a.fit"
    kept.read_or_make("a", lambda: made)
    path.write_bytes(damage(path.read_bytes()))
    anew = fit(rng)
    assert kept.read_or_make("a", lambda: anew) is anew
    assert [message for message in caplog.messages if message.startswith(f"{path}: damaged, so it is made anew")]
    same(kept.read_or_make("a", lambda: pytest.fail("it is kept")), anew)
