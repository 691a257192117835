"""Cross-fitting without a network: `learn` is a function whose outputs are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group

from runs.errors import InputError
from training.crossfit import align, cross_fit, folds_of_scans

NAMES = [f"feature_{number}" for number in range(1, 4)]
OUTPUTS = ["log_hazard", *NAMES]


def scans(rng, num_subjects, name, visits=2):
    """A feature table: subjects with some visits each, every second one with an event."""
    subject = np.repeat([f"{name}{number}" for number in range(num_subjects)], visits)
    table = pd.DataFrame({"subject": subject, "scan": [f"{name}-{row}" for row in range(len(subject))]})
    table["event"] = np.repeat(np.arange(num_subjects) % 2 == 0, visits)
    return table.assign(**dict(zip(OUTPUTS, rng.normal(size=(4, len(subject))).astype(np.float32), strict=True)))


@pytest.fixture
def features(rng):
    return {"train": scans(rng, 13, "t"), "val": scans(rng, 8, "v")}


def moved(table, rotation, *, scale, shift, factor, offset):
    """The same scans as a network in another space sees them."""
    other = table.copy()
    other[NAMES] = table[NAMES].to_numpy() @ rotation.T / scale + shift
    other["log_hazard"] = (table["log_hazard"] - offset) / factor
    return other


def test_a_network_that_differs_by_a_turn_a_scale_and_a_shift_is_brought_back(features):
    rotation = ortho_group.rvs(3, random_state=0)
    seen = {
        name: moved(table, rotation, scale=0.5, shift=7.0, factor=0.4, offset=-3.0) for name, table in features.items()
    }
    aligned = align(seen["train"], seen["val"], features["val"])
    np.testing.assert_allclose(aligned[OUTPUTS], features["train"][OUTPUTS], atol=2e-3)
    assert aligned.drop(columns=OUTPUTS).equals(features["train"].drop(columns=OUTPUTS))


def test_the_map_is_ridge_regression(features, rng, monkeypatch):
    """Against the closed form, by the normal equations of the centred outputs."""
    monkeypatch.setattr("training.crossfit.PENALTIES", [2.0])
    theirs = features["val"].assign(**{name: rng.normal(size=16) for name in OUTPUTS})
    x, y = theirs[OUTPUTS].to_numpy(float), features["val"][OUTPUTS].to_numpy(float)
    centred = x - x.mean(axis=0)
    coefficients = np.linalg.solve(centred.T @ centred + 2.0 * np.eye(4), centred.T @ (y - y.mean(axis=0)))
    expected = (features["train"][OUTPUTS].to_numpy(float) - x.mean(axis=0)) @ coefficients + y.mean(axis=0)
    np.testing.assert_allclose(align(features["train"], theirs, features["val"])[OUTPUTS], expected, atol=1e-5)


def test_what_the_networks_do_not_share_is_shrunk(rng):
    both = {"theirs": scans(rng, 200, "v"), "ours": scans(rng, 200, "v")}
    aligned = align(both["theirs"], both["theirs"], both["ours"])
    assert (aligned[OUTPUTS].std() < 0.2 * both["ours"][OUTPUTS].std()).all()


def test_a_dead_network_says_the_mean(features):
    theirs = features["val"].assign(**dict.fromkeys(OUTPUTS, 0.0))
    aligned = align(theirs, theirs, features["val"])[OUTPUTS].to_numpy()
    np.testing.assert_allclose(aligned, np.tile(features["val"][OUTPUTS].mean(), (16, 1)), atol=1e-6)


def test_a_scan_has_the_features_of_the_network_that_never_saw_its_subject(features, tmp_path):
    """Each network marks the scans it learnt from, the main network all of them: no mark may come through."""
    main = features | {"train": features["train"].assign(**dict.fromkeys(OUTPUTS, 1000.0))}
    learnt_from = []

    def learn(rows, folder):
        learnt_from.append(rows)
        folder.mkdir(parents=True)
        seen = features["train"].copy()
        seen.loc[rows, OUTPUTS] = 1000.0
        return {"train": seen, "val": features["val"]}

    found = cross_fit(main, learn, num_folds=3, seed=0, folder=tmp_path)
    np.testing.assert_allclose(found[OUTPUTS], features["train"][OUTPUTS], atol=5e-3)
    assert list(found["scan"]) == list(features["train"]["scan"])
    assert (np.sum(learnt_from, axis=0) == 2).all()  # of 3: every scan was held out once
    assert len(list(tmp_path.glob("*/features.parquet"))) == 3


def test_a_finished_network_is_not_trained_again(features, tmp_path):
    asked: list[str] = []

    def learn(rows, folder):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(folder.name)
        return features

    with pytest.raises(KeyboardInterrupt):
        cross_fit(features, learn, num_folds=2, seed=0, folder=tmp_path)
    asked.insert(0, "so that the next one is not stopped")
    again = cross_fit(features, learn, num_folds=2, seed=0, folder=tmp_path)
    assert asked[1:] == ["1", "2"]
    np.testing.assert_allclose(again[OUTPUTS], features["train"][OUTPUTS], atol=5e-3)


def test_folds_are_of_whole_subjects_and_share_the_events(features):
    table = features["train"].assign(fold=folds_of_scans(features["train"], 3, 0))
    assert table.groupby("subject")["fold"].nunique().max() == 1
    by_fold = table.drop_duplicates("subject").groupby("fold")["event"]
    assert list(by_fold.sum()) == [3, 2, 2] and list(by_fold.size()) == [5, 4, 4]
    assert (folds_of_scans(features["train"], 3, 0) == table["fold"]).all()
    assert (folds_of_scans(features["train"], 3, 1) != table["fold"]).any()


def test_more_folds_than_events_are_refused(features):
    with pytest.raises(InputError, match="CROSS_FIT: expected at most 7, the training subjects with an event"):
        folds_of_scans(features["train"], 8, 0)


@pytest.mark.parametrize("name", ["part", "feature_size", "index", "fold"])
def test_covariates_of_any_name_come_through(features, tmp_path, name):
    own = {part: table.assign(**{name: np.arange(float(len(table)))}) for part, table in features.items()}
    aligned = cross_fit(own, lambda rows, folder: folder.mkdir() or own, num_folds=2, seed=0, folder=tmp_path)
    pd.testing.assert_series_equal(aligned[name], own["train"][name])
    assert list(aligned) == list(own["train"])
