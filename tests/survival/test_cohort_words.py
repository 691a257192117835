"""The cohort in words: its counts by hand, times in a wrong unit, ages, and horizons that the data do not bear."""

import logging

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import median_survival_times
from samples import random_table, visits_table

from survival.cohort_words import describe_cohort, horizons_not_borne, log_cohort, unlikely_times
from survival.estimates import largest_below


def cohort_of(rng, *, gap=0.5, follow_up=4.0, num_subjects=40):
    """3 visits a subject, in years."""
    subjects = np.repeat([f"s{number:02}" for number in range(num_subjects)], 3)
    time = np.repeat(2 * gap + rng.uniform(0.1, 1, num_subjects) * follow_up, 3)
    event = np.repeat(np.arange(num_subjects) % 2 == 0, 3)
    visits = np.tile(gap * np.arange(3), num_subjects)
    return pd.DataFrame({"subject": subjects, "visit_time": visits, "time": time, "event": event})


def test_a_cohort_is_told_as_counted_by_hand():
    assert describe_cohort(visits_table(), (1.0, 2.0)) == [
        "cohort: 3 subjects, 6 visits, 1 to 3 a subject, median 2",
        "follow-up: median 3 years (reverse Kaplan-Meier), longest 4 years; "
        "2 subjects with an event, median time to it 2.75 years; 1 censored",
        "visits: median gap 1 years, 0.5 to 1.5",
        "covariates: a, lab",
        "landmark 1 years: 3 subjects at risk, 2 with an event; left out: 0 whose event or follow-up came before, 0 "
        "without a visit by then",
        "landmark 2 years: 2 subjects at risk, 1 with an event; left out: 1 whose event or follow-up came before, 0 "
        "without a visit by then",
    ]


@pytest.mark.parametrize(("num_visits", "words"), [((2, 3), "2 subjects, 5 visits"), ((4,), "1 subjects, 4 visits")])
def test_those_without_an_outcome_are_counted_beside_the_cohort(rng, caplog, num_visits, words):
    caplog.set_level("INFO")
    teachers = pd.DataFrame({"subject": np.repeat([f"t{number}" for number in range(len(num_visits))], num_visits)})
    table = cohort_of(rng)
    log_cohort({"train": table}, teachers=teachers, time_unit="years")
    assert f"without an outcome: {words}, which teach progress and no more" in caplog.text
    assert f"cohort: {table['subject'].nunique()} subjects, {len(table)} visits" in caplog.text
    caplog.clear()
    log_cohort({"train": table}, teachers=teachers[:0], time_unit="years")
    assert "without an outcome" not in caplog.text


def test_late_first_visits_are_counted():
    table = visits_table().query("visit_time > 0")
    lines = describe_cohort(table, (0.6,))
    assert "2 subjects have their first one after 0, up to 1 years" in lines[2]
    assert lines[-1].startswith("landmark 0.6 years: 1 subjects at risk") and "1 without a visit by then" in lines[-1]


def test_columns_are_told_with_those_that_are_not_used(rng):
    table = random_table(rng, num_subjects=9, num_features=5).assign(feature_9=0.0)
    assert describe_cohort(table)[-1] == "covariates: log_hazard, lab, 5 of the form feature_<n>"
    table = table.assign(sex=np.where(table["subject"] < "s04", "M", "F"), field=3.0, ward=None)
    used = "covariates: log_hazard, lab, sex, 5 of the form feature_<n>"
    assert describe_cohort(table)[-1] == f"{used}; not used: field (one value, 3), ward (every value is missing)"


def test_a_table_without_outcomes_is_told(rng):
    lines = describe_cohort(random_table(rng, num_subjects=9).drop(columns=["time", "event"]), (1.0,))
    assert [line.split(":")[0] for line in lines] == ["cohort", "visits"]


@pytest.mark.parametrize("seed", range(3))
def test_the_median_follow_up_is_lifelines(seed):
    table = random_table(np.random.default_rng(seed), num_subjects=60)
    outcomes = table.drop_duplicates("subject")
    fitter = KaplanMeierFitter().fit(outcomes["time"], ~outcomes["event"])
    expected = median_survival_times(fitter.survival_function_)
    assert f"follow-up: median {expected:.3g} years (reverse" in describe_cohort(table)[1]


def test_a_median_follow_up_that_nobody_reaches_is_told():
    assert "median not reached" in describe_cohort(visits_table().assign(event=True))[1]


@pytest.mark.parametrize(
    ("read_as", "meant", "cause"),
    [
        ("years", "months", "In months? Then set TIME_UNIT=months"),
        ("months", "days", "In days? Then set TIME_UNIT=days"),
        ("days", "years", "In years? Then set TIME_UNIT=years"),
        ("days", "months", "In months? Then set TIME_UNIT=months"),
    ],
)
def test_times_in_another_unit_are_noticed_with_the_likely_one(rng, read_as, meant, cause):
    per_year = {"years": 1.0, "months": 12.0, "days": 365.25}
    table = cohort_of(rng)
    assert unlikely_times(table, meant) == []
    table[["visit_time", "time"]] *= per_year[meant] / per_year[read_as]
    (line,) = unlikely_times(table, read_as)
    assert line.endswith(cause) and f"read as {read_as}" in line


def test_a_long_follow_up_of_single_visits_is_noticed(rng):
    first = cohort_of(rng, follow_up=48.0).drop_duplicates("subject")
    (line,) = unlikely_times(first, "years")
    assert line.startswith("the follow-up lasts up to ") and "TIME_UNIT=months" in line


@pytest.mark.parametrize(("youngest", "oldest"), [(60, 90), (20, 45)])
def test_ages_in_the_place_of_times_are_noticed(rng, youngest, oldest):
    table = cohort_of(rng)
    table[["visit_time", "time"]] += np.repeat(rng.uniform(youngest, oldest, 40), 3)[:, None]
    (line,) = unlikely_times(table, "years")
    assert "Ages? `visit_time` and `time` count from each subject's first visit" in line


def test_horizons_beyond_the_follow_up_are_told_with_the_largest(rng):
    long, short = cohort_of(rng, follow_up=6.0), cohort_of(rng, follow_up=3.0)
    parts = {"train": long, "val": long, "test": short}
    end = (short["time"] - 1.0).max()
    (line,) = horizons_not_borne(parts, (), (2.0, 3.5, 12.0))
    assert "HORIZONS: 3.5, 12 years after the last visits lie beyond the follow-up of the test part" in line
    assert line.endswith(f"the largest that the data bear is {largest_below(end)} years")
    assert horizons_not_borne(parts, (), (2.0, largest_below(end))) == []
    (line,) = horizons_not_borne(parts, (0.5, 2.0), (2.5,))
    assert "2.5 years after landmark 2 lie beyond" in line
    assert horizons_not_borne(parts, (90.0,), (1.0,)) == []  # such a landmark is refused


def test_the_lines_and_the_warnings_reach_the_log(rng, caplog):
    caplog.set_level(logging.INFO)
    log_cohort({"train": cohort_of(rng, gap=6.0, follow_up=50.0)}, time_unit="years", horizons=(99.0,))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO"] * 4 + ["WARNING"] * 2
