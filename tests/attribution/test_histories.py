"""Stage 2 explained: exact values by hand and by every order, parts that sum, on networks that are arithmetic."""

import itertools
from math import factorial

import numpy as np
import pandas as pd
import pytest

from attribution import histories
from attribution.regions import Regions
from survival.estimates import Baseline, survival_curves
from survival.predictor import Predictor
from survival.preparation import Preparation

SHAPE = (4, 3, 2)
NAMES = ("log_hazard", "feature_1", "feature_2")
HORIZONS = (2.0, 5.0)


class Curved:
    """A correction that is not linear, looks at every visit and at the gaps, and attends evenly."""

    def correct(self, data):
        visits = data.visits
        starts = np.concatenate([[0], np.cumsum(visits.sizes)[:-1]])
        corrections = []
        for subject, last in zip(data.landmarks.subject, data.landmarks.visit, strict=True):
            rows = starts[: last + 1] + visits.rank[subject]
            state = np.tanh(data.inputs[rows] @ np.linspace(-0.4, 0.6, data.inputs.shape[1]))
            corrections.append((state * np.exp(-data.years[rows])).sum() + 0.3 * np.prod(1 + state))
        return np.array(corrections)[None], np.zeros((1, len(data.inputs)))


@pytest.fixture
def cohort(rng):
    """Visits of 30 subjects with a covariate, and outputs of stage 1 that drift."""
    rows = [
        {"subject": f"S{subject:02d}", "scan": f"S{subject:02d}_{visit}", "visit_time": visit * (0.5 + subject / 90)}
        for subject in range(30)
        for visit in range(1 + subject % 4)
    ]
    table = pd.DataFrame(rows)
    table["age"] = rng.normal(70, 5, len(table))
    for name in NAMES:
        table[name] = rng.normal(size=len(table)) + table["visit_time"] * rng.normal()
    return table


@pytest.fixture
def predictor(cohort, rng):
    prepare = Preparation.fit(cohort, ["age", *NAMES], num_components=2)
    baseline = Baseline(np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.3, 0.7]))
    return Predictor(
        prepare, (), rng.normal(scale=0.3, size=(1, prepare.num_inputs)), Curved(), 1.2, baselines=(baseline,)
    )


@pytest.fixture
def subject(cohort):
    """Three visits."""
    return cohort[cohort["subject"] == "S02"].reset_index(drop=True)


def image_stage_of(rng, *, curved=True):
    """Three outputs of a volume, with the gradient by hand."""
    kernel = rng.normal(size=(int(np.prod(SHAPE)), 3)) / 3

    def outputs(volumes):
        flat = volumes.reshape(len(volumes), -1)
        return flat @ kernel + (0.05 * (flat**2) @ np.abs(kernel) if curved else 0)

    def gradient_of_weighted_outputs(volumes, weights):
        flat = volumes.reshape(len(volumes), -1)
        slope = weights @ kernel.T + (0.1 * flat * (weights @ np.abs(kernel).T) if curved else 0)
        return slope.reshape(volumes.shape)

    return histories.ImageStage(NAMES, outputs, gradient_of_weighted_outputs)


REGIONS = Regions(np.arange(24).reshape(SHAPE) % 4, {1: "left", 2: "right", 3: "top"})
SETTINGS = histories.HistorySettings(REGIONS, HORIZONS, seed=0)


def by_every_order(coalition_value, number):
    """The mean gain of each player over all orders."""
    values = np.zeros(number)
    for order in itertools.permutations(range(number)):
        members = np.zeros((1, number), bool)
        for player in order:
            before = coalition_value(members)[0]
            members[0, player] = True
            values[player] += coalition_value(members)[0] - before
    return values / factorial(number)


# ---- Shapley values --------------------------------------------------------------------------------------
def test_the_glove_game():
    """One left glove, two right ones: a pair is worth 1."""
    values = histories.shapley(lambda m: (m[:, 0] & (m[:, 1] | m[:, 2])).astype(float), 3)
    np.testing.assert_allclose(values, [2 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize("number", [1, 2, 4])
def test_all_coalitions_as_all_orders(rng, number):
    value_of = rng.normal(size=2**number)

    def coalition_value(members):
        return value_of[members @ (1 << np.arange(number))]

    values = histories.shapley(coalition_value, number)
    np.testing.assert_allclose(values, by_every_order(coalition_value, number), atol=1e-12)
    assert values.sum() == pytest.approx(value_of[-1] - value_of[0], abs=1e-12)


def test_visits_sum_to_the_log_hazard(predictor, subject):
    visits = histories.visit_shapley(predictor, subject, expected=0.4)
    whole = predictor.predict(subject, (), years=())["log_hazard"].iloc[0]
    assert visits["shapley"].sum() == pytest.approx(whole - 0.4, abs=1e-6)
    np.testing.assert_allclose(visits["attention"], 1 / 3)
    np.testing.assert_array_equal(visits["visit"], [1, 2, 3])


def test_a_visit_taken_out_has_never_been(predictor, subject):
    """Two visits by hand: the history of the second alone begins with it."""
    two = subject.iloc[:2]

    def alone(*rows):
        return predictor.predict(two.iloc[list(rows)], (two["visit_time"].iloc[1],), years=())["log_hazard"].iloc[0]

    values = histories.visit_shapley(predictor, two, expected=0.4)["shapley"]
    first = (alone(0) - 0.4 + alone(0, 1) - alone(1)) / 2
    assert values[0] == pytest.approx(first, abs=1e-12)
    assert abs(first) > 1e-3


def test_a_visit_masked_from_the_start_is_exactly_0(predictor, subject):
    landmark = float(subject["visit_time"].iloc[1])
    masked = histories.visit_shapley(predictor, subject, expected=0.4, landmark=landmark)
    absent = histories.visit_shapley(predictor, subject.iloc[:2], expected=0.4)
    assert masked["shapley"].iloc[2] == 0.0
    np.testing.assert_allclose(masked["shapley"][:2], absent["shapley"], atol=1e-12)


def test_one_visit_is_all(predictor, subject):
    first = subject.iloc[:1]
    whole = predictor.predict(first, (), years=())["log_hazard"].iloc[0]
    visits = histories.visit_shapley(predictor, first, expected=0.4)
    assert visits["shapley"][0] == pytest.approx(whole - 0.4, abs=1e-12)


def test_too_many_visits_are_said(predictor, subject, caplog):
    many = pd.concat([subject.iloc[:1]] * 13, ignore_index=True).assign(visit_time=np.arange(13.0))
    visits = histories.visit_shapley(predictor, many, expected=0.4)
    assert visits["shapley"].isna().all() and visits["attention"].sum() == pytest.approx(1)
    assert "13 visits" in caplog.text


def test_groups_sum_to_the_gap_from_the_training_mean(predictor, subject):
    groups = histories.group_shapley(predictor, subject)
    predict = histories._log_hazard_of_inputs(predictor, subject)
    inputs = predictor.prepare(subject)[None]
    gap = (predict(inputs) - predict(np.zeros_like(inputs)))[0]
    assert groups["shapley"].sum() == pytest.approx(gap, abs=1e-6)
    assert groups["num_inputs"].sum() == predictor.prepare.num_inputs


def test_a_linear_model_gives_each_group_its_terms(predictor, subject):
    linear = Predictor(predictor.prepare, (), predictor.link, None, 1.2, predictor.baselines)
    terms = 1.2 * linear.link[0] * linear.prepare(subject)[-1]  # of the last visit
    values = histories.group_shapley(linear, subject).set_index("group")["shapley"]
    group = np.array(histories.input_groups(linear.prepare))
    for name in values.index:
        assert values[name] == pytest.approx(terms[group == name].sum(), abs=1e-12)


def test_the_groups_by_name(predictor):
    level, change = "log-hazard of the scan", "log-hazard of the scan, change"
    image, times = ["image components"] * 2, ["times of the visits"] * 2
    wanted = ["covariates", level, *image, *times, "covariates", change, *image]
    assert histories.input_groups(predictor.prepare) == wanted


# ---- Region by visit -------------------------------------------------------------------------------------
def explained(predictor, subject, rng, *, curved=True, num_background=64):
    table = subject.drop(columns=list(NAMES))
    volumes = rng.normal(size=(len(table), *SHAPE, 1)).astype(np.float32)
    background = rng.normal(size=(num_background, *SHAPE, 1)).astype(np.float32)
    image_stage = image_stage_of(rng, curved=curved)
    effects, metrics = histories.region_by_visit(
        predictor, table, volumes, background, image_stage=image_stage, settings=SETTINGS
    )

    def predicted(volumes):
        outputs = image_stage.outputs(volumes).astype(float)
        whole = table.assign(**dict(zip(NAMES, outputs.T, strict=True)))
        return predictor.predict(whole, (), years=HORIZONS).iloc[0]

    of_background = pd.DataFrame([predicted(np.repeat(other[None], len(table), axis=0)) for other in background])
    return effects, metrics, predicted(volumes), of_background, volumes, background, image_stage


def test_region_by_visit_sums_to_the_gap(predictor, subject, rng):
    effects, metrics, own, of_background, *_ = explained(predictor, subject, rng)
    gap = own["log_hazard"] - of_background["log_hazard"].mean()
    assert effects["log_hazard"].sum() == pytest.approx(gap, abs=1e-9)
    for year in HORIZONS:  # risk falls as survival rises
        gap = of_background[f"survival_{year}"].mean() - own[f"survival_{year}"]
        assert effects[f"risk_{year}"].sum() == pytest.approx(gap, abs=1e-9)
    assert metrics["log_hazard"] == pytest.approx(own["log_hazard"]) and metrics["unattributed"] < 0.05
    assert len(effects) == 5 * 3 and set(effects["region"]) == {"elsewhere", "left", "right", "top", "unattributed"}


def test_linear_stages_give_weight_times_difference(predictor, subject, rng):
    linear = Predictor(predictor.prepare, (), predictor.link, None, 1.2, predictor.baselines)
    effects, metrics, _, _, volumes, background, image_stage = explained(linear, subject, rng, curved=False)
    assert metrics["unattributed"] < 1e-6
    plain = subject.drop(columns=list(NAMES))

    def log_hazard(outputs):
        whole = plain.assign(**dict(zip(NAMES, outputs.T, strict=True)))
        return linear.predict(whole, (), years=())["log_hazard"].iloc[0]

    outputs = image_stage.outputs(volumes).astype(float)
    wide = effects.pivot_table(index="label", columns="visit", values="log_hazard")
    for visit, label in itertools.product(range(3), range(4)):  # put the background's mean into one region of one visit
        changed = volumes.copy()
        inside = REGIONS.labels == label
        changed[visit][inside] = background.mean(axis=0)[inside]
        effect = log_hazard(outputs) - log_hazard(image_stage.outputs(changed).astype(float))
        assert wide.loc[label, visit + 1] == pytest.approx(effect, abs=1e-5)


def test_a_region_that_nothing_reads_has_no_effect(predictor, subject, rng):
    table, image_stage = subject.drop(columns=list(NAMES)), image_stage_of(rng)
    blind = (REGIONS.labels != 2)[..., None]
    seeing = histories.ImageStage(
        NAMES,
        lambda v: image_stage.outputs(v * blind),
        lambda v, w: image_stage.gradient_of_weighted_outputs(v * blind, w) * blind,
    )
    volumes, background = (rng.normal(size=(n, *SHAPE, 1)).astype(np.float32) for n in (3, 8))
    effects, _ = histories.region_by_visit(predictor, table, volumes, background, image_stage=seeing, settings=SETTINGS)
    assert (effects.loc[effects["label"] == 2, ["log_hazard", "risk_2.0"]] == 0).to_numpy().all()
    assert effects.loc[effects["label"] == 1, "log_hazard"].abs().min() > 1e-6


def test_a_subject_like_the_background_has_no_gap(predictor, subject, rng):
    table, image_stage = subject.drop(columns=list(NAMES)), image_stage_of(rng)
    volume = rng.normal(size=(1, *SHAPE, 1)).astype(np.float32)
    effects, metrics = histories.region_by_visit(
        predictor, table, volume.repeat(3, axis=0), volume, image_stage=image_stage, settings=SETTINGS
    )
    assert effects[["log_hazard", "risk_5.0"]].abs().to_numpy().max() < 1e-12
    assert metrics["unattributed"] is None


def test_few_backgrounds_get_more_gradients_each(predictor, subject, rng):
    """Two backgrounds alone, on a line with an even grid each."""
    _, metrics, *_ = explained(predictor, subject, rng, num_background=2)
    assert metrics["unattributed"] < 0.02


def test_risk_is_of_the_landmarks_baseline(predictor):
    later = Baseline(np.array([1.0]), np.array([0.9]))
    two = Predictor(predictor.prepare, (0.0, 3.0), predictor.link, None, 1.0, (predictor.baselines[0], later))
    expected = 1 - survival_curves(later, np.array([0.5]), np.array(HORIZONS))
    np.testing.assert_allclose(histories._risk(two, 2.5, HORIZONS)(np.array([0.5])), expected)


def test_the_whole_explanation(predictor, subject, rng):
    volumes, background = (rng.normal(size=(n, *SHAPE, 1)).astype(np.float32) for n in (3, 4))
    explanation = histories.explain_history(
        predictor,
        subject.drop(columns=list(NAMES)).assign(time=9.0, event=True),
        volumes,
        background,
        image_stage=image_stage_of(rng),
        expected=0.4,
        settings=SETTINGS,
    )
    log_hazard, base = (explanation["metrics"][name] for name in ("log_hazard", "background_log_hazard"))
    assert log_hazard is not None and base is not None
    assert explanation["visits"]["shapley"].sum() + 0.4 == pytest.approx(log_hazard, abs=1e-6)
    assert explanation["regions"]["log_hazard"].sum() == pytest.approx(log_hazard - base, abs=1e-9)
