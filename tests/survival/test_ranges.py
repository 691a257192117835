"""What is said of subjects unlike those of training: values, missing columns, first and last visits."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from samples import random_table

from runs import files
from survival.estimates import Baseline
from survival.predictor import Predictor
from survival.preparation import Preparation
from survival.ranges import UNKNOWN, by_subject, find_out_of_range, lines_of

COLUMNS = ["age", "lab", "feature_0", "feature_1", "feature_2", "feature_3"]


def training_table(rng):
    """40 subjects of 60 to 80 years; `lab` has a long tail; the first visit is at 0, the last at 3 years at most."""
    table = random_table(rng, num_subjects=40)
    table["visit_time"] -= table.groupby("subject")["visit_time"].transform("first")
    table = table[table["visit_time"] <= 3.0].reset_index(drop=True)
    table["age"] = rng.uniform(60, 80, len(table))
    return table


def predictor_of(table, *, grid=(), num_components=2, columns=COLUMNS):
    prepare = Preparation.fit(table, columns, num_components=num_components)
    link = np.zeros((1, prepare.num_inputs))
    return Predictor(prepare, grid, link, baselines=(Baseline(np.ones(1), np.zeros(1)),) * max(len(grid), 1))


def new_subject(training, name="n", num_visits=2, **columns):
    """A subject with visits every half year, whose values are the medians of training but for these columns."""
    values = training[COLUMNS].median()
    table = pd.DataFrame([values] * num_visits).reset_index(drop=True)
    return table.assign(**{"subject": name, "visit_time": 0.5 * np.arange(num_visits)} | columns)


def causes(predictor, table):
    found = find_out_of_range(predictor, table)
    return dict(zip(found["cause"], found["received"], strict=True))


def test_training_subjects_and_those_like_them_are_within(rng):
    table = training_table(rng)
    for num_components in (0, 2):
        predictor = predictor_of(table, num_components=num_components)
        assert find_out_of_range(predictor, table).empty
        assert find_out_of_range(predictor, new_subject(table)).empty


@pytest.mark.parametrize(("age", "is_far"), [(84.0, False), (56.0, False), (840.0, True), (0.7, True), (-3.0, True)])
def test_a_far_covariate_is_named_with_its_value_and_the_range(rng, age, is_far):
    table = training_table(rng)
    found = causes(predictor_of(table), new_subject(table, age=[70.0, age]))
    assert len(found) == is_far
    for cause, received in found.items():
        assert cause.startswith(f"age is far outside the training values {table['age'].min():.4g} to ")
        assert cause.endswith(f"{table['age'].max():.4g}") and received == f"{age:.4g}"


@pytest.mark.parametrize("unit", [1.0, 1e-3, 3e7])
def test_the_unit_of_a_column_changes_no_finding(rng, unit):
    table = training_table(rng)
    new = new_subject(table, age=[70.0, 91.0])
    scaled = table.assign(age=table["age"] * unit)
    found = causes(predictor_of(scaled), new.assign(age=new["age"] * unit))
    assert [received for received in found.values()] == [f"{91.0 * unit:.4g}"]


def test_a_logged_column_is_compared_as_a_logarithm_and_its_zeros_are_named(rng):
    table = training_table(rng)
    predictor = predictor_of(table)
    assert "lab" in predictor.prepare.logged
    highest = table["lab"].max()
    assert find_out_of_range(predictor, new_subject(table, lab=[highest, 1.5 * highest])).empty
    (cause, received), *more = causes(predictor, new_subject(table, lab=[highest, 1e4 * highest])).items()
    assert f"{table['lab'].min():.4g} to {highest:.4g}" in cause and received == f"{1e4 * highest:.4g}" and not more
    ((cause, received),) = causes(predictor, new_subject(table, lab=[1.0, -4.0])).items()
    assert "lab is not above 0, so it counts as missing" in cause and received == "-4"


@pytest.mark.parametrize("cell", [1e30, -5000.0])
def test_a_clipped_value_is_told_as_it_is_with_what_it_counts_as(rng, cell):
    table = training_table(rng)
    table.loc[4, "age"] = cell  # training itself has a far cell
    prepare = Preparation.fit(table, COLUMNS, num_components=0, winsorise=10.0)
    predictor = dataclasses.replace(predictor_of(table, num_components=0), prepare=prepare)
    low, high = prepare.fences_of("age")
    new = new_subject(table, age=[70.0, cell])
    ((cause, received),) = causes(predictor, new).items()
    assert received == f"{cell:.4g}" and cause.endswith(f"(below {low:.4g} it counts as that, and so above {high:.4g})")
    ((cause, received),) = causes(predictor, new_subject(table, age=1.5 * high)).items()
    assert received == f"{1.5 * high:.4g}" and "counts as that" in cause
    assert causes(predictor, new_subject(table)) == {}


def test_a_column_without_any_value_is_named_with_what_stands_for_it(rng):
    table = training_table(rng)
    predictor = predictor_of(table)
    assert find_out_of_range(predictor, new_subject(table, age=[np.nan, 70.0])).empty
    both = causes(predictor, new_subject(table, age=np.nan, lab=np.nan))
    assert list(both) == [
        f"age is missing at every visit and counts as the training median {table['age'].median():.4g}",
        f"lab is missing at every visit and counts as the training median {np.exp(np.log(table['lab']).median()):.4g}",
    ]
    ((cause, received),) = causes(predictor, new_subject(table, feature_1=np.nan, feature_3=np.nan)).items()
    assert "features of scans are missing" in cause and received == "2 of 4"


def test_strange_scans_are_told_by_their_components_if_the_model_uses_them(rng):
    table = training_table(rng)
    strange = new_subject(table, **{f"feature_{number}": 30.0 * (-1) ** number for number in range(4)})
    assert all("of the scans' features is far outside" in cause for cause in causes(predictor_of(table), strange))
    assert causes(predictor_of(table), strange)
    assert causes(predictor_of(table, num_components=0), strange) == {}


def test_first_and_last_visits_beyond_training_are_named(rng):
    table = training_table(rng)
    predictor, last = predictor_of(table), table["visit_time"].max()
    assert causes(predictor, new_subject(table, visit_time=[0.25, 0.5])) == {
        "the first visit is not at 0": "0.25 years"
    }
    assert causes(predictor, new_subject(table, visit_time=[0.0, 36.0])) == {
        f"visits are later than any visit of training, {last:.2f} years": "36.00 years"
    }
    late_starters = predictor_of(table.assign(visit_time=table["visit_time"] + 0.5))
    assert causes(late_starters, new_subject(table, visit_time=[0.25, 0.5])) == {}
    assert "the first visit is not at 0 to 0.50 years, as in training" in causes(
        late_starters, new_subject(table, visit_time=[1.0, 2.0])
    )


def test_a_model_of_landmarks_knows_no_visit_after_its_last(rng):
    table = training_table(rng)
    predictor = predictor_of(table, grid=(0.0, 1.0))
    assert causes(predictor, new_subject(table, visit_time=[0.0, 1.0])) == {}
    assert causes(predictor, new_subject(table, visit_time=[0.0, 2.0])) == {
        "visits are later than the last landmark of training, 1.00 years": "2.00 years"
    }


def test_a_text_a_subject_and_a_line_a_cause(rng):
    table = training_table(rng)
    new = [new_subject(table, name=f"n{number}", age=[700.0, 900.0 + number]) for number in range(5)]
    new.append(new_subject(table, name="ordinary"))
    new.append(new_subject(table, name="late", visit_time=[1.0, 2.0]))
    found = find_out_of_range(predictor_of(table), pd.concat(new, ignore_index=True))
    texts = by_subject(found, pd.Series(["n0", "ordinary", "late"]))
    assert texts[0].startswith("age is far outside") and texts[0].endswith(": 900")
    assert texts[1:] == ["", "the first visit is not at 0: 1.00 years"]
    far, late = lines_of(found, 7)
    assert far.endswith("5 of 7 subjects: n0 (900), n1 (901), n2 (902), …")
    assert late == "the first visit is not at 0, 1 of 7 subjects: late (1.00 years)"


def test_a_model_without_its_ranges_says_so_of_everyone(rng):
    """It was saved by an earlier version: what needs no range is still told."""
    table = training_table(rng)
    predictor = predictor_of(table)
    saved = json.loads(json.dumps(dataclasses.asdict(predictor.prepare), default=files._plain))
    assert find_out_of_range(
        dataclasses.replace(predictor, prepare=Preparation.from_json(saved)), new_subject(table)
    ).empty
    del saved["seen"]
    old = dataclasses.replace(predictor, prepare=Preparation.from_json(saved))
    np.testing.assert_array_equal(old.prepare(table), predictor.prepare(table))
    assert causes(old, new_subject(table, age=[700.0, np.nan], visit_time=[0.25, 50.0])) == {
        UNKNOWN: "",
        "the first visit is not at 0": "0.25 years",
    }


def test_the_ranges_are_of_the_table_that_was_fitted(rng):
    table = training_table(rng)
    seen = Preparation.fit(table, ["age"], num_components=0).seen
    wider = Preparation.fit(table.assign(age=table["age"] * 2), ["age"], num_components=0).seen
    assert (seen.first_visit, seen.last_visit) == (0.0, table["visit_time"].max())
    np.testing.assert_allclose(seen.spread, 1.0)
    np.testing.assert_allclose(wider.low, seen.low)  # standardised


def test_ranges_that_do_not_fit_are_refused(rng):
    prepare = Preparation.fit(training_table(rng), COLUMNS, num_components=2)
    saved = json.loads(json.dumps(dataclasses.asdict(prepare), default=files._plain))
    for name, wrong in (("low", [0.0]), ("spread", [float("nan")] * 4)):
        with pytest.raises(ValueError, match=r"seen: expected 4 columns|finite"):
            Preparation.from_json(saved | {"seen": saved["seen"] | {name: wrong}})
