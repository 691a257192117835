"""A history explained: values by every order, by hand, and parts that sum, on networks that are arithmetic."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from attribution import games, histories
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


# ---- The game --------------------------------------------------------------------------------------------
def by_history(data):
    """(N, V, P) inputs of histories of one length."""
    return data.inputs[data.visits.order.argsort()].reshape(len(data.visits.subject), -1, data.inputs.shape[1])


class Steps(Predictor):
    """A stage 2 without a gradient: trees on the last visit, the first one, and all of them."""

    def log_hazard(self, data):
        inputs = by_history(data)
        rises, most = inputs[:, -1, 1] > 0, (inputs[..., 1:4] > 0).sum(axis=(1, 2))
        return 0.7 * rises + 0.4 * (most > 4) - 0.3 * rises * (inputs[:, 0, 3] > 0), None


def steps_of(predictor):
    return Steps(predictor.prepare, (), predictor.link, baselines=predictor.baselines)


def without_components(cohort, predictor, columns=("age", "log_hazard")):
    """The same stage 2 without `feature_<n>`: each value is a column of the table."""
    prepare = Preparation.fit(cohort, list(columns), num_components=0)
    return replace(predictor, prepare=prepare, link=predictor.link[:, : prepare.num_inputs])


def backgrounds_of(predictor, cohort, number=5):
    """(B, G) values of other subjects' first visits."""
    return predictor.prepare.values(cohort.drop_duplicates("subject"))[-number:]


def by_every_order(predictor, subject, others, columns):
    """(V, P) mean gain of a cell over all orders, where a cell that has not come yet is that of another subject."""
    cells = list(itertools.product(range(len(subject)), columns))
    values = np.zeros((len(subject), len(columns)))
    orders = list(itertools.permutations(range(len(cells))))

    def log_hazard(table):
        return predictor.predict(table, (), years=())["log_hazard"].iloc[0]

    for other, order in itertools.product(others, orders):
        table = subject.copy()
        table[list(columns)] = other[list(columns)].to_numpy(float)
        before = log_hazard(table)
        for row, name in (cells[player] for player in order):
            table.loc[row, name] = subject.loc[row, name]
            after = log_hazard(table)
            values[row, columns.index(name)] += (after - before) / (len(orders) * len(others))
            before = after
    return values


def mean_shapley(worth):
    return worth.shapley.mean(axis=(0, 1))


@pytest.mark.parametrize(
    ("num_visits", "columns", "number"), [(3, ["log_hazard"], 2), (2, ["log_hazard", "progress"], 1)]
)
def test_values_as_by_every_order_on_tables(cohort, predictor, rng, num_visits, columns, number):
    """With the cells of other subjects put into the table, and `predict`: not one line of the game."""
    cohort["progress"] = rng.normal(size=len(cohort))
    simple = without_components(cohort, predictor, ["age", *columns])
    subject = cohort[cohort["subject"] == "S02"].head(num_visits).reset_index(drop=True)
    others = [row for _, row in cohort.drop_duplicates("subject").tail(number).iterrows()]
    background = backgrounds_of(simple, cohort, number=number)
    worth = histories.play_history(simple, subject, background)
    expected = by_every_order(simple, subject, others, columns)
    np.testing.assert_allclose(mean_shapley(worth), expected, atol=1e-12)
    assert np.abs(expected).min() > 1e-4


@pytest.mark.parametrize("make", [lambda predictor: predictor, steps_of])
@pytest.mark.parametrize("num_visits", [1, 3])
@pytest.mark.parametrize("most", [0, 2**15])
def test_visits_and_groups_sum_to_the_gap(cohort, predictor, subject, monkeypatch, make, num_visits, most):
    monkeypatch.setattr(games, "MOST_COALITIONS", most)
    predictor, subject = make(predictor), subject.head(num_visits)
    background = backgrounds_of(predictor, cohort)
    worth = histories.play_history(predictor, subject, background)
    gap = worth.played.everybody - worth.played.nobody.mean()
    assert worth.played.everybody == predictor.predict(subject, (), years=())["log_hazard"][0]
    assert abs(gap) > 0.01
    for table in (worth.visits(), worth.groups()):
        assert table["shapley"].sum() == pytest.approx(gap, abs=1e-12)
    assert list(worth.visits()["visit"]) == list(range(1, num_visits + 1))
    assert worth.groups()["group"].tolist() == ["log-hazard of the scan", "image components"]
    assert worth.groups()["num_values"].tolist() == [1, 2]


@pytest.mark.parametrize("make", [lambda predictor: predictor, steps_of])
def test_random_orders_are_as_near_as_they_say(cohort, predictor, subject, monkeypatch, make):
    predictor, background = make(predictor), backgrounds_of(predictor, cohort)
    exact = histories.play_history(predictor, subject, background)
    monkeypatch.setattr(games, "MOST_COALITIONS", 0)
    monkeypatch.setattr(games, "NUM_COALITIONS", 800)
    drawn = histories.play_history(predictor, subject, background, seed=3)
    assert (exact.visits()["standard_error"] == 0).all() and drawn.shapley.shape[:2] == (10, 5)
    for ours, expected in ((drawn.visits(), exact.visits()), (drawn.groups(), exact.groups())):
        error = ours["standard_error"]
        assert error.max() > 1e-4
        assert ((ours["shapley"] - expected["shapley"]).abs() <= 4 * error + 1e-12).all()


def test_a_linear_stage_2_gives_coefficient_times_difference(cohort, predictor, subject):
    linear = replace(predictor, network=None)
    prepare, background = linear.prepare, backgrounds_of(predictor, cohort)
    state = linear.link[0, : prepare.num_state] * prepare.state.factor
    change = linear.link[0, prepare.num_state :] * prepare.change.factor
    coefficients = 1.2 * np.stack([-change[1:], 0 * change[1:], state[1:4] + change[1:]])  # `age` does not play
    difference = prepare.values(subject)[:, 1:] - background[:, 1:].mean(axis=0)
    worth = histories.play_history(linear, subject, background)
    np.testing.assert_allclose(mean_shapley(worth), coefficients * difference, atol=1e-12)


def test_visits_that_do_the_same_are_worth_the_same(predictor, subject, cohort):
    """The same scan at visits 1 and 2, which a mean over the visits cannot tell apart."""

    class Mean(Predictor):
        def log_hazard(self, data):
            return np.exp(by_history(data)[..., 1].mean(axis=1)), None

    subject.loc[1, list(NAMES)] = subject.loc[0, list(NAMES)]
    mean = Mean(predictor.prepare, (), predictor.link, baselines=predictor.baselines)
    shapley = mean_shapley(histories.play_history(mean, subject, backgrounds_of(predictor, cohort)))
    assert shapley[0, 0] == pytest.approx(shapley[1, 0], abs=1e-12)
    assert abs(shapley[0, 0] - shapley[2, 0]) > 1e-3


@pytest.mark.parametrize("make", [lambda predictor: predictor, steps_of])
def test_a_visit_after_the_landmark_is_worth_exactly_0(predictor, subject, cohort, make):
    """Even of a stage 2 that would look at it."""
    predictor, background = make(predictor), backgrounds_of(predictor, cohort)
    landmark = float(subject["visit_time"].iloc[1])
    masked = histories.play_history(predictor, subject, background, landmark=landmark).visits()
    absent = histories.play_history(predictor, subject.head(2), background).visits()
    assert masked["shapley"].iloc[2] == 0.0 and np.isnan(masked.get("attention", [np.nan] * 3)[2])
    pd.testing.assert_frame_equal(masked.head(2), absent)


def test_the_history_is_predicted_at_the_landmark(predictor, subject, cohort):
    """Which may lie after the last visit."""

    class Later(Predictor):
        def log_hazard(self, data):
            return data.landmarks.year * data.inputs[data.rows, 1], None

    later = Later(predictor.prepare, (), predictor.link, baselines=predictor.baselines)
    background = backgrounds_of(predictor, cohort)
    at_2, at_6 = (histories.play_history(later, subject, background, landmark=year).visits() for year in (2.0, 6.0))
    np.testing.assert_allclose(at_6["shapley"], 3 * at_2["shapley"])
    assert at_2["shapley"].abs().max() > 1e-3


def test_attention_is_shown_where_stage_2_attends(predictor, subject, cohort):
    background = backgrounds_of(predictor, cohort)
    attending = histories.play_history(predictor, subject, background).visits()
    np.testing.assert_allclose(attending["attention"], 1 / 3)
    assert "attention" not in histories.play_history(steps_of(predictor), subject, background).visits()


def test_a_long_history_is_played_too(predictor, subject, cohort):
    """60 players."""
    long = pd.concat([subject.head(1)] * 20, ignore_index=True).assign(visit_time=np.arange(20.0))
    worth = histories.play_history(predictor, long, backgrounds_of(predictor, cohort, number=2))
    assert worth.visits()["shapley"].sum() == pytest.approx(worth.played.everybody - worth.played.nobody.mean())


@pytest.mark.parametrize("columns", [["age"], ["age", "weight"]])
def test_without_images_all_values_play_against_the_training_mean(cohort, predictor, rng, columns):
    cohort["weight"] = rng.normal(70, 9, len(cohort))
    simple = without_components(cohort, predictor, columns)
    subject = cohort[cohort["subject"] == "S03"]
    worth = histories.play_history(simple, subject)
    mean = pd.concat([subject.assign(age=cohort["age"].mean(), weight=cohort["weight"].mean())])
    of_mean = simple.predict(mean, (), years=())["log_hazard"][0]
    assert worth.played.nobody[0] == pytest.approx(of_mean, abs=1e-9)
    assert worth.groups()["group"].tolist() == columns and len(worth.visits()) == 4
    assert worth.visits()["shapley"].abs().min() > 1e-5


@pytest.mark.parametrize("size", [1, 7])
def test_histories_are_predicted_in_chunks(predictor, subject, cohort, monkeypatch, size):
    background = backgrounds_of(predictor, cohort, number=2)
    whole = histories.play_history(predictor, subject.head(1), background)
    monkeypatch.setattr(histories, "CHUNK_HISTORIES", size)
    in_chunks = histories.play_history(predictor, subject.head(1), background)
    np.testing.assert_allclose(whole.shapley, in_chunks.shapley, atol=1e-12)


# ---- Region by visit -------------------------------------------------------------------------------------
def explained(predictor, subject, rng, *, curved=True, num_background=32, **changed):
    table = subject.drop(columns=list(NAMES))
    volumes = rng.normal(size=(len(table), *SHAPE, 1)).astype(np.float32)
    background = rng.normal(size=(num_background, *SHAPE, 1)).astype(np.float32)
    image_stage = image_stage_of(rng, curved=curved)
    explanation = histories.explain_history(
        predictor, table, volumes, background, **{"image_stage": image_stage, "settings": SETTINGS} | changed
    )

    def predicted(volumes):
        outputs = image_stage.outputs(volumes).astype(float)
        whole = table.assign(**dict(zip(NAMES, outputs.T, strict=True)))
        return predictor.predict(whole, (), years=HORIZONS).iloc[0]

    of_background = pd.DataFrame([predicted(np.repeat(other[None], len(table), axis=0)) for other in background])
    return explanation, predicted(volumes), of_background, volumes, background, image_stage


@pytest.mark.parametrize("make", [lambda predictor: predictor, steps_of])
@pytest.mark.parametrize("most", [0, 2**15])
def test_bars_groups_and_regions_agree(predictor, subject, rng, monkeypatch, make, most):
    """Visit by visit, and in all: to the gap between the log-hazard and that of the backgrounds."""
    monkeypatch.setattr(games, "MOST_COALITIONS", most)
    explanation, *_ = explained(make(predictor), subject, rng, num_background=8)
    visits, metrics = explanation["visits"], explanation["metrics"]
    by_visit = explanation["regions"].groupby("visit")["log_hazard"].sum()
    np.testing.assert_allclose(by_visit, visits["shapley"], atol=1e-9)
    gap = metrics["log_hazard"] - metrics["background_log_hazard"]
    assert visits["shapley"].sum() == pytest.approx(gap, abs=1e-9) and abs(gap) > 0.01
    assert explanation["groups"]["shapley"].sum() == pytest.approx(gap, abs=1e-9)


def test_region_by_visit_sums_to_the_gap(predictor, subject, rng):
    explanation, own, of_background, *_ = explained(predictor, subject, rng)
    effects, metrics = explanation["regions"], explanation["metrics"]
    gap = own["log_hazard"] - of_background["log_hazard"].mean()
    assert effects["log_hazard"].sum() == pytest.approx(gap, abs=1e-9)
    for year in HORIZONS:  # risk falls as survival rises
        gap = of_background[f"survival_{year}"].mean() - own[f"survival_{year}"]
        assert effects[f"risk_{year}"].sum() == pytest.approx(gap, abs=1e-9)
    assert metrics["log_hazard"] == pytest.approx(own["log_hazard"]) and metrics["unattributed"] < 0.05
    assert len(effects) == 5 * 3 and set(effects["region"]) == {"elsewhere", "left", "right", "top", "unattributed"}


def test_linear_stages_give_weight_times_difference(predictor, subject, rng, monkeypatch):
    monkeypatch.setattr(histories, "LEAST_DIFFERENCE", 0)
    linear = replace(predictor, network=None)
    explanation, _, _, volumes, background, image_stage = explained(linear, subject, rng, curved=False)
    assert explanation["metrics"]["unattributed"] < 1e-6
    plain = subject.drop(columns=list(NAMES))

    def log_hazard(outputs):
        whole = plain.assign(**dict(zip(NAMES, outputs.T, strict=True)))
        return linear.predict(whole, (), years=())["log_hazard"].iloc[0]

    outputs = image_stage.outputs(volumes).astype(float)
    wide = explanation["regions"].pivot_table(index="label", columns="visit", values="log_hazard")
    for visit, label in itertools.product(range(3), range(4)):  # put the background's mean into one region of one visit
        changed = volumes.copy()
        inside = REGIONS.labels == label
        changed[visit][inside] = background.mean(axis=0)[inside]
        effect = log_hazard(outputs) - log_hazard(image_stage.outputs(changed).astype(float))
        assert wide.loc[label, visit + 1] == pytest.approx(effect, abs=1e-5)


@pytest.mark.parametrize("winsorise", [0.0, 0.2])
def test_values_that_are_not_linear_in_the_outputs_are_attributed(cohort, predictor, subject, rng, winsorise):
    """The logarithm of an output, kept within fences: the integrals of a linear stage 1 miss nothing."""
    table = cohort.assign(log_hazard=np.exp(2 * cohort["log_hazard"]))
    prepare = Preparation.fit(table, ["age", *NAMES], num_components=2, winsorise=winsorise)
    assert prepare.logged == ("log_hazard",)
    stage = image_stage_of(rng, curved=False)

    def positive(volumes):
        return stage.outputs(volumes) + np.array([4.0, 0, 0])

    linear = histories.ImageStage(NAMES, positive, stage.gradient_of_weighted_outputs)
    curved = replace(predictor, prepare=prepare)
    explanation, *_ = explained(curved, subject, rng, image_stage=linear)
    assert explanation["visits"]["shapley"].abs().max() > 0.1
    assert explanation["metrics"]["unattributed"] < 0.01


def test_a_region_that_nothing_reads_has_no_effect(predictor, subject, rng):
    image_stage = image_stage_of(rng)
    blind = (REGIONS.labels != 2)[..., None]
    seeing = histories.ImageStage(
        NAMES,
        lambda v: image_stage.outputs(v * blind),
        lambda v, w: image_stage.gradient_of_weighted_outputs(v * blind, w) * blind,
    )
    effects = explained(predictor, subject, rng, num_background=8, image_stage=seeing)[0]["regions"]
    assert (effects.loc[effects["label"] == 2, ["log_hazard", "risk_2.0"]] == 0).to_numpy().all()
    assert effects.loc[effects["label"] == 1, "log_hazard"].abs().min() > 1e-6


def test_a_subject_like_the_background_has_no_gap(predictor, subject, rng):
    volume = rng.normal(size=(1, *SHAPE, 1)).astype(np.float32)
    explanation = histories.explain_history(
        predictor,
        subject.drop(columns=list(NAMES)),
        volume.repeat(3, axis=0),
        volume,
        image_stage=image_stage_of(rng),
        settings=SETTINGS,
    )
    assert explanation["regions"][["log_hazard", "risk_5.0"]].abs().to_numpy().max() < 1e-12
    assert explanation["visits"]["shapley"].abs().max() < 1e-12
    assert explanation["metrics"]["unattributed"] is None


@pytest.mark.parametrize("nearness", [1e-3, 1e-5])
def test_a_jump_between_scans_that_hardly_differ_is_not_blown_up(predictor, rng, nearness):
    """One background of 8 lies just beside the scan, on the other side of a step of stage 2."""

    class Step(Predictor):
        def log_hazard(self, data):
            return 0.5 * (data.inputs[data.rows, 1] > threshold), None

    volume = rng.normal(size=(1, *SHAPE, 1)).astype(np.float32)
    background = rng.normal(size=(8, *SHAPE, 1)).astype(np.float32)
    image_stage = image_stage_of(rng, curved=False)
    background[0] = volume[0] + nearness * background[1]
    table = pd.DataFrame({"subject": ["s"], "visit_time": [0.0], "age": [70.0]})
    pair = np.concatenate([volume, background[:1]])
    whole = pd.concat([table] * 2, ignore_index=True).assign(subject=["a", "b"])
    whole[list(NAMES)] = image_stage.outputs(pair).astype(float)
    threshold = predictor.prepare(whole)[:, 1].mean()
    step = Step(predictor.prepare, (), predictor.link, baselines=predictor.baselines)
    explanation = histories.explain_history(step, table, volume, background, image_stage=image_stage, settings=SETTINGS)
    effects, (worth,) = explanation["regions"], explanation["visits"]["shapley"]
    assert effects["log_hazard"].sum() == pytest.approx(worth, abs=1e-9)
    assert effects["log_hazard"].abs().max() < 2
    assert explanation["metrics"]["unattributed"] > 0.05  # the jump of one background in 8


def test_few_backgrounds_get_more_gradients_each(predictor, subject, rng):
    """Two backgrounds alone, on a line with an even grid each."""
    explanation, *_ = explained(predictor, subject, rng, num_background=2)
    assert explanation["metrics"]["unattributed"] < 0.02


def test_risk_is_of_the_landmarks_baseline(predictor):
    later = Baseline(np.array([1.0]), np.array([0.9]))
    two = Predictor(predictor.prepare, (0.0, 3.0), predictor.link, None, 1.0, (predictor.baselines[0], later))
    expected = 1 - survival_curves(later, np.array([0.5]), np.array(HORIZONS))
    np.testing.assert_allclose(histories._risk(two, 2.5, HORIZONS)(np.array([0.5])), expected)


def test_an_outcome_in_the_table_changes_nothing(predictor, subject, rng):
    state = rng.bit_generator.state
    plain = explained(predictor, subject, rng, num_background=4)[0]
    rng.bit_generator.state = state
    with_outcome = explained(predictor, subject.assign(time=0.1, event=True), rng, num_background=4)[0]
    for name in ("visits", "groups", "regions"):
        pd.testing.assert_frame_equal(plain[name], with_outcome[name])
