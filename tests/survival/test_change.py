"""Each subject's line, what the lines of many tell of rates, and the rate that is given for one."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from runs.errors import InputError
from survival.change import (
    POPULATION_FILE,
    RATES,
    TABLE,
    Lines,
    Moments,
    Population,
    change_table,
    write_change,
)
from tests.oracles.change_mixed_model import MIXED_MODEL, lines_table


def lines_of(table):
    return Lines.of(table, "progress")


def visits(**values_by_subject):
    """A table from `subject=[(year, value), ...]`."""
    rows = [(subject, *visit) for subject, of_subject in values_by_subject.items() for visit in of_subject]
    return pd.DataFrame(rows, columns=["subject", "visit_time", "progress"])


# ---- Lines
def test_lines_of_four_subjects():
    """a: on the line 2 t; b: 0, 3, 0 at 0, 1, 2, so slope 0 and residuals -1, 2, -1; c: two visits; d: one."""
    table = visits(a=[(0, 1), (1, 3), (3, 7)], b=[(0, 0), (1, 3), (2, 0)], c=[(1, 5), (1.5, 4)], d=[(2, 9)])
    lines = lines_of(table)
    assert lines.subject.tolist() == ["a", "b", "c", "d"] and lines.num_visits.tolist() == [3, 3, 2, 1]
    np.testing.assert_allclose(lines.slope, [2, 0, -2, np.nan])
    np.testing.assert_allclose(lines.s_tt, [14 / 3, 2, 0.125, 0])
    np.testing.assert_allclose(lines.s_residual, [0, 6, 0, 0], atol=1e-12)
    np.testing.assert_allclose(lines.noise, [0, np.sqrt(6), np.nan, np.nan], atol=1e-7)
    assert lines.first.tolist() == [0, 0, 1, 2] and lines.last.tolist() == [3, 2, 1.5, 2]
    assert lines.value.tolist() == [7, 0, 4, 9]


def test_lines_are_those_of_numpy():
    table = lines_table(30, seed=4)
    lines = lines_of(table)
    for row, (subject, of_one) in enumerate(table.groupby("subject")):
        (slope, _), residuals, *_ = np.polyfit(of_one["visit_time"], of_one["progress"], 1, full=True)
        assert lines.subject[row] == subject and lines.slope[row] == pytest.approx(slope)
        np.testing.assert_allclose(lines.s_residual[row], residuals.sum(), atol=1e-10)


def test_a_level_of_its_own_changes_no_line():
    table = lines_table(30, seed=4)
    shift = table.groupby("subject").ngroup() * 1000.0
    lines, shifted = lines_of(table), lines_of(table.assign(progress=table["progress"] + shift))
    np.testing.assert_allclose(shifted.slope, lines.slope, atol=1e-9)
    np.testing.assert_allclose(shifted.s_residual, lines.s_residual, atol=1e-7)


# ---- The moments
def test_the_moments_are_those_of_a_mixed_model():
    population = Population.of(lines_of(lines_table()))
    for name in ("rate_sd", "noise"):
        assert getattr(population, name) == pytest.approx(MIXED_MODEL[name], rel=0.01)
    assert population.mean_rate == pytest.approx(MIXED_MODEL["mean"], abs=0.002)
    assert population.mean_rate_error == pytest.approx(MIXED_MODEL["mean_error"], rel=0.01)
    rates = population.rates(lines_of(lines_table()))["rate"].head(len(MIXED_MODEL["first_rates"]))
    np.testing.assert_allclose(rates, MIXED_MODEL["first_rates"], atol=0.01)


@pytest.mark.parametrize(("noise", "rate_sd"), [(0.1, 0.5), (0.6, 0.3), (0.3, 0.01)])
def test_the_moments_are_near_the_maximum_of_the_likelihood(noise, rate_sd):
    """Restricted likelihood of slopes and residuals, whatever the subjects' levels are."""
    lines = lines_of(lines_table(800, seed=3, noise=noise, rate_sd=rate_sd))
    degrees = lines.degrees.sum()

    def minus_likelihood(logs):
        between, within = np.exp(2 * logs)
        variance = between + within / lines.s_tt
        mean = np.sum(lines.slope / variance) / np.sum(1 / variance)
        of_slopes = np.log(variance).sum() + ((lines.slope - mean) ** 2 / variance).sum() + np.log((1 / variance).sum())
        return of_slopes + degrees * np.log(within) + lines.s_residual.sum() / within

    best = np.exp(optimize.minimize(minus_likelihood, np.log([rate_sd, noise]), method="Nelder-Mead").x)
    population = Population.of(lines)
    assert population.noise == pytest.approx(best[1], rel=0.02)
    assert population.rate_sd == pytest.approx(best[0], abs=0.03)


def test_weights_count_subjects():
    """Twice the weight is twice the subject; weight 0 is nobody."""
    table = lines_table(40, seed=5)
    names = table["subject"].unique()
    again = table[table["subject"].isin(names[:10])].assign(subject=lambda rows: rows["subject"] + "b")
    without = table[~table["subject"].isin(names[30:])]
    doubled = lines_of(pd.concat([without, again]))
    weights = np.repeat([2.0, 1.0, 0.0], [10, 20, 10])[None]
    weighted, plain = Moments.of(lines_of(table), weights), Moments.of(doubled, np.ones((1, 40)))
    for name in ("mean", "mean_error", "rate_variance", "noise_variance"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(plain, name))


def test_rates_that_noise_explains_do_not_differ():
    lines = lines_of(lines_table(60, seed=7, rate_sd=0.0, noise=0.5))
    population = Population.of(lines)
    assert population.rate_sd < 0.2 and np.ptp(population.rates(lines)["rate"]) < 0.3 * np.ptp(lines.slope)


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_lines_without_noise_or_spread_have_one_rate(slope):
    table = visits(**{name: [(year, slope * year) for year in (0, 1, 2)] for name in "abc"})
    population = Population.of(lines_of(table))
    assert (population.mean_rate, population.mean_rate_error) == (pytest.approx(slope), 0.0)
    np.testing.assert_allclose(population.rates(lines_of(table)), slope)


@pytest.mark.parametrize(
    "table",
    [
        visits(a=[(0, 0)], b=[(0, 1)]),
        visits(a=[(0, 0), (1, 1), (2, 3)], b=[(0, 1)]),
        visits(a=[(0, 0), (1, 1)], b=[(0, 1), (1, 4)]),
    ],
)
def test_too_few_visits_tell_no_rates(table):
    """Nobody with two; one subject with two, so no spread; nobody with three, so no noise."""
    assert Population.of(lines_of(table)) is None


# ---- The rate of one subject
def test_a_rate_lies_between_the_own_slope_and_the_mean():
    population = Population(mean_rate=1.0, mean_rate_error=0.1, rate_sd=0.5, noise=0.5, mean_level=0.0)
    table = visits(one=[(0, 7)], two=[(0, 0), (2, 6)], three=[(0, 0), (1, 3), (2, 6)])
    rates = population.rates(lines_of(table))
    shares = np.array([0, 2 / 3, 2 / 3])  # 0.25 S_tt / (0.25 S_tt + 0.25), S_tt = 2
    np.testing.assert_allclose(rates["rate"], 1 + shares * 2)
    error = np.sqrt((1 - shares) * 0.25 + (1 - shares) ** 2 * 0.01)
    np.testing.assert_allclose(rates["rate_high"] - rates["rate"], stats.norm.ppf(0.975) * error)
    np.testing.assert_allclose(rates["rate"] - rates["rate_low"], stats.norm.ppf(0.975) * error)


@pytest.mark.parametrize(("seed", "most"), [(11, 1), (12, 2), (13, 6)])
def test_intervals_hold_95_of_100_true_rates_of_new_subjects(seed, most):
    population = Population.of(lines_of(lines_table(1000, seed=seed + 100)))
    new = lines_table(2000, seed=seed, most=max(most, 2))
    new = new.groupby("subject").head(most).reset_index(drop=True)
    rates, truth = population.rates(lines_of(new)), new.groupby("subject")["true_rate"].first().to_numpy()
    covered = (rates["rate_low"] <= truth) & (truth <= rates["rate_high"])
    assert 0.93 < covered.mean() < 0.97


# ---- Files
@pytest.fixture
def parts():
    tables = {part: lines_table(20, seed=seed) for seed, part in enumerate(("train", "val", "test"))}
    tables["test"] = tables["test"].groupby("subject").head(2).drop(index=[0])  # the first subject has one visit
    tables["test"] = tables["test"].reset_index(drop=True)
    return {part: table.assign(subject=part + table["subject"]) for part, table in tables.items()}


def test_every_subject_has_a_row(parts, tmp_path, caplog):
    caplog.set_level("INFO")
    write_change(tmp_path, parts)
    written, population = pd.read_csv(tmp_path / TABLE), Population.load(tmp_path / POPULATION_FILE)
    assert population == Population.of(lines_of(parts["train"]))
    assert written["split"].value_counts().to_dict() == {"train": 20, "val": 20, "test": 20}
    assert set(written["subjectid"]) == {subject for table in parts.values() for subject in table["subject"]}
    single = written.set_index("subjectid").loc["tests0000"]
    assert single["num_visits"] == 1 and single["rate"] == pytest.approx(population.mean_rate)
    assert np.isnan(single[["own_slope", "own_slope_error", "noise"]].astype(float)).all()
    assert "1 of 60 subjects have one visit" in caplog.text
    train = written[written["split"] == "train"]
    last = parts["train"].groupby("subject").tail(1)
    np.testing.assert_allclose(train["level"], last["progress"] - last["progress"].mean())
    assert train["level"].mean() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(train["level_high"] - train["level_low"], 2 * 1.959964 * population.noise)
    np.testing.assert_allclose(train["own_slope_error"], population.noise / np.sqrt(lines_of(parts["train"]).s_tt))


def test_the_population_is_the_training_parts_alone(parts):
    population = Population.of(lines_of(parts["train"]))
    alone = change_table({"val": parts["val"]}, population)
    together = change_table(parts, population).query("split == 'val'").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together)


def test_without_rates_the_slopes_are_written_and_a_warning_says_so(parts, tmp_path, caplog):
    two = {part: table.groupby("subject").head(2).reset_index(drop=True) for part, table in parts.items()}
    write_change(tmp_path, two)
    written = pd.read_csv(tmp_path / TABLE)
    assert "no rates: fewer than two training subjects have two visits, or none has 3" in caplog.text
    assert not (tmp_path / POPULATION_FILE).exists()
    assert written[[*RATES, "level", "own_slope_error"]].isna().all(axis=None)
    assert written["own_slope"].notna().sum() == 59


@pytest.mark.parametrize("content", ['{"mean_rate": "fast"}', "{}", '{"mean_rate": 1.0, "noise": null}'])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / POPULATION_FILE).parent.mkdir()
    (tmp_path / POPULATION_FILE).write_text(content)
    with pytest.raises(InputError, match=f"{POPULATION_FILE}: expected the training subjects' rates"):
        Population.load(tmp_path / POPULATION_FILE)
