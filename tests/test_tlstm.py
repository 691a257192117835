"""The T-LSTM, its loss and its command line: naive twins, lifelines, torchsurv, causality, bad input."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from feature_tables import feature_table
from lifelines import CoxPHFitter
from samples import naive_loss, random_table, survival_data

import tlstm
from cohort import tables
from cohort.splits import PARTS, split_subjects
from config import Config
from runs.errors import InputError
from runs.files import ROOT, write_json
from survival import cox, crossval, preparation, rivals, saved_model
from survival.estimates import breslow
from survival.landmarks import Histories
from survival.link import inner_folds, split_rows
from survival.predictor import attention_weights
from tests.oracles.tlstm_slopes import slope_table

SHIPPED = tlstm.Settings.of(Config(STAGE2="tlstm"))
QUICK = dataclasses.replace(SHIPPED, num_seeds=2, hidden=4, epochs=3, components=(2,), penalties=(0.1,))
YEARS = np.array([1.0, 2.0, 3.0])


# ---- The loss ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("strata", [False, True])
def test_cox_equals_the_naive_loss(rng, ties, strata):
    inputs, time, event, stratum = survival_data(rng)
    stratum = stratum if strata else np.zeros_like(stratum)
    loss = tlstm.stratified_cox_loss(torch.tensor(inputs[:, 0]), cox.risk_sets(time, event, stratum, ties))
    assert float(loss) == pytest.approx(naive_loss(inputs[:, 0], time, event, stratum, ties), abs=1e-12)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning", "ignore:Ties in .time.:UserWarning"
)
def test_cox_equals_torchsurv_with_ties(rng, ties):
    from torchsurv.loss.cox import neg_partial_log_likelihood  # it warns on import

    inputs, time, event, _ = survival_data(rng)
    log_hazard = torch.tensor(inputs[:, 0])
    torchsurv_sum = neg_partial_log_likelihood(
        log_hazard, torch.tensor(event), torch.tensor(time), ties_method=ties, reduction="sum"
    )
    assert float(tlstm.stratified_cox_loss(log_hazard, cox.risk_sets(time, event, None, ties))) == pytest.approx(
        float(torchsurv_sum) / event.sum(), abs=1e-6
    )


def test_cox_equals_lifelines_with_ties(rng):
    inputs, time, event, _ = survival_data(rng)
    fitter = CoxPHFitter().fit(pd.DataFrame({"x": inputs[:, 0], "time": time, "event": event}), "time", "event")
    log_hazard = torch.tensor(inputs[:, 0] * fitter.params_["x"])
    loss = tlstm.stratified_cox_loss(log_hazard, cox.risk_sets(time, event))
    assert float(loss) == pytest.approx(-fitter.log_likelihood_ / event.sum(), abs=1e-6)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("spread", [1.0, 1000.0])  # summed in float64, or in log space
def test_cox_gradient_equals_finite_differences(rng, ties, spread):
    inputs, time, event, stratum = survival_data(rng)
    sets = cox.risk_sets(time, event, stratum, ties)
    assert sets.num_ties < len(sets.event)
    log_hazard = torch.tensor(inputs[:, 0], requires_grad=True)
    with torch.no_grad():
        log_hazard[3] += spread
    assert torch.autograd.gradcheck(lambda x: tlstm.stratified_cox_loss(x, sets), (log_hazard,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cox_is_finite_at_1000(rng, dtype):
    _, time, event, _ = survival_data(rng)
    log_hazard = torch.tensor(rng.choice([-1000.0, 0.0, 1000.0], len(time)), dtype=dtype, requires_grad=True)
    sets = cox.risk_sets(time, event)
    loss = tlstm.stratified_cox_loss(log_hazard, sets)
    assert loss.isfinite()
    assert torch.autograd.grad(tlstm.stratified_cox_loss(log_hazard, sets), log_hazard)[0].isfinite().all()
    assert loss.dtype == dtype


def test_cox_ignores_a_shift_and_the_order_of_rows(rng):
    inputs, time, event, stratum = survival_data(rng)
    log_hazard = torch.tensor(inputs[:, 0])
    loss = tlstm.stratified_cox_loss(log_hazard, cox.risk_sets(time, event, stratum))
    shifted = tlstm.stratified_cox_loss(log_hazard + 300, cox.risk_sets(time, event, stratum))
    order = rng.permutation(len(time))
    shuffled = tlstm.stratified_cox_loss(log_hazard[order], cox.risk_sets(time[order], event[order], stratum[order]))
    assert float(shifted) == pytest.approx(float(loss), abs=1e-12)
    assert float(shuffled) == pytest.approx(float(loss), abs=1e-12)


def test_cox_without_an_event_is_0_and_attached():
    log_hazard = torch.ones(3, requires_grad=True)
    loss = tlstm.stratified_cox_loss(log_hazard, cox.risk_sets(np.ones(3), np.zeros(3, bool)))
    assert loss == 0
    assert torch.autograd.grad(loss, log_hazard)[0].tolist() == [0, 0, 0]


# ---- The network -------------------------------------------------------------------------------------
def network_and_data(rng, *, seeds=2, double=True, **settings):
    table = random_table(rng)
    prepare = preparation.Preparation.fit(table, tables.feature_columns(table), num_components=2)
    data = Histories.of(table, prepare, (0.5, 1.0, 2.0))
    settings = dataclasses.replace(SHIPPED, num_seeds=seeds, hidden=5, link=False, **settings)
    network = tlstm.TLSTM(data.inputs.shape[1], settings).eval()
    inputs, years, sizes, rows = tlstm._tensors(data)
    if double:
        network, inputs, years = network.double(), torch.tensor(data.inputs), torch.tensor(data.years)
    return network, data, (inputs, years, sizes, rows)


def naive_log_hazard(network, seed, inputs, years, pool):
    """One subject, one seed, step by step, as the papers write it; (V, P), (V,) -> last log-hazard."""
    weights = {name: value[seed].detach().numpy() for name, value in network.named_parameters()}
    hidden = len(weights["short"])
    cell, state, states = np.zeros(hidden), np.zeros(hidden), []

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for x, gap in zip(inputs, years, strict=True):
        if network.settings.time_aware:
            short = np.tanh(cell @ weights["short"] + weights["short_bias"][0])
            cell = (cell - short) + short / math.log(math.e + gap)
        gates = x @ weights["input"] + state @ weights["recurrent"] + weights["bias"][0]
        input_gate, forget_gate, output_gate, candidate = np.split(gates, 4)
        cell = sigmoid(forget_gate) * cell + sigmoid(input_gate) * np.tanh(candidate)
        state = sigmoid(output_gate) * np.tanh(cell)
        states.append(state)
    if pool == "last":
        return states[-1] @ weights["head"][:, 0]
    scores = np.tanh(np.array(states) @ weights["attend"] + weights["attend_bias"]) @ weights["context"][:, 0]
    attention = np.exp(scores) / np.exp(scores).sum()
    return attention @ np.array(states) @ weights["head"][:, 0]


@pytest.mark.parametrize("pool", ["attention", "last"])
@pytest.mark.parametrize("time_aware", [True, False])
def test_network_equals_the_naive_one(rng, pool, time_aware):
    network, data, arguments = network_and_data(rng, pool=pool, time_aware=time_aware)
    log_hazard, _ = network(*arguments)
    for seed in range(2):
        for row, (subject, visit) in enumerate(zip(data.landmarks.subject, data.landmarks.visit, strict=True)):
            history = data.visits.row(np.full(visit + 1, subject), np.arange(visit + 1))
            expected = naive_log_hazard(network, seed, data.inputs[history], data.years[history], pool)
            assert log_hazard[seed, row].item() == pytest.approx(expected, abs=1e-10)


def test_attention_weights_are_a_softmax_up_to_the_landmark(rng):
    network, data, _ = network_and_data(rng, double=False)
    scores = network.correct(data)[1]
    weights = attention_weights(scores, data)
    for row, (subject, visit) in enumerate(zip(data.landmarks.subject, data.landmarks.visit, strict=True)):
        history = data.visits.row(np.full(visit + 1, subject), np.arange(visit + 1))
        raised = np.exp(scores[:, history])
        np.testing.assert_allclose(
            weights[row, : visit + 1], (raised / raised.sum(axis=1, keepdims=True)).mean(axis=0), atol=1e-12
        )
        assert np.isnan(weights[row, visit + 1 :]).all()


def test_attention_can_not_overflow(rng):
    states = torch.tensor(rng.normal(size=(1, 5, 2)))
    scores = torch.tensor([[1000.0, -1000.0, 999.0, 0.0, 1000.0]], dtype=torch.double)
    pooled = tlstm.attention(states, scores, [1] * 5)
    shares = torch.softmax(scores, dim=1)
    torch.testing.assert_close(pooled[0, -1], (shares[0, :, None] * states[0]).sum(dim=0))
    assert pooled.isfinite().all()


@pytest.mark.parametrize("more", [0, 1, 50])
def test_the_length_of_other_histories_changes_nothing(rng, more):
    """Beside a subject with 50 visits more, others would be padded by 50 visits."""
    table = random_table(rng)
    prepare = preparation.Preparation.fit(table, tables.feature_columns(table), num_components=2)
    network = tlstm.TLSTM(prepare.num_inputs, dataclasses.replace(SHIPPED, num_seeds=2, hidden=5, link=False)).eval()
    longest = table.groupby("subject").size().max() + more
    other = pd.DataFrame([{**table.iloc[0], "subject": "z", "time": 999.0, "visit_time": k} for k in range(longest)])
    alone = network.correct(Histories.of(table, prepare))[0]
    beside = network.correct(Histories.of(pd.concat([table, other], ignore_index=True), prepare))[0]
    np.testing.assert_allclose(beside[:, :-1], alone, atol=1e-6)


def test_seeds_side_by_side_equal_each_alone(rng):
    network, data, _ = network_and_data(rng, seeds=3, double=False)
    for seed in range(3):
        alone = tlstm.TLSTM(data.inputs.shape[1], dataclasses.replace(network.settings, num_seeds=1)).eval()
        alone.load_state_dict({name: weights[seed : seed + 1] for name, weights in network.state_dict().items()})
        np.testing.assert_allclose(alone.correct(data)[0][0], network.correct(data)[0][seed], atol=1e-6)


def test_time_decays_memory_as_published():
    """g(0) = 1 keeps the cell; a long gap takes the short-term memory away."""
    network = tlstm.TLSTM(1, dataclasses.replace(SHIPPED, num_seeds=1, hidden=2)).double()
    inputs, rows = torch.ones(2, 1, dtype=torch.double), torch.tensor([1])
    plain = dataclasses.replace(network.settings, time_aware=False)
    at_once = network.states(inputs, torch.zeros(2, dtype=torch.double), [1, 1])[:, rows]
    later = network.states(inputs, torch.tensor([0.0, 100.0], dtype=torch.double), [1, 1])[:, rows]
    network.settings = plain
    torch.testing.assert_close(network.states(inputs, torch.zeros(2, dtype=torch.double), [1, 1])[:, rows], at_once)
    assert not torch.allclose(later, at_once)


# ---- Training and prediction -----------------------------------------------------------------------
def fitted(table, settings=QUICK, grid=(0.5, 1.0, 2.0), seed=0):
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    validation = inner_folds(event, settings.num_seeds, np.random.default_rng(seed))
    return tlstm.fit(table, validation, tables.feature_columns(table), grid=grid, settings=settings)


def test_a_default_of_the_settings_stands_in_config_alone():
    own = {field.name for field in dataclasses.fields(tlstm.Settings) if field.default is not dataclasses.MISSING}
    assert own == {"time_aware"}
    changed = tlstm.Settings.of(Config(HIDDEN=7, TIES="breslow", COMPONENTS=(3,)))
    assert (changed.hidden, changed.ties, changed.components) == (7, "breslow", (3,))


def test_a_table_is_prepared_once_for_each_number_of_components(rng, monkeypatch):
    prepared = []
    prepare = preparation.Preparation.__call__
    monkeypatch.setattr(
        preparation.Preparation,
        "__call__",
        lambda self, *given: prepared.append(len(given[0])) or prepare(self, *given),
    )
    table = random_table(rng)
    fitted(table, dataclasses.replace(QUICK, components=(0, 2)))
    assert prepared == [len(table)] * 2


def test_step_0_is_the_ridge_cox_of_lifelines(rng):
    table = random_table(rng, num_subjects=80, num_features=0)
    settings = dataclasses.replace(QUICK, epochs=0, num_seeds=1)
    predictor, _ = fitted(table, settings)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    trained = ~inner_folds(event, 1, np.random.default_rng(0))[0]
    data = Histories.of(table, predictor.prepare, predictor.grid)
    rows = trained[data.landmarks.subject]
    inputs = data.last_values[rows][:, : predictor.prepare.num_state]
    spread = inputs.std(axis=0, ddof=1)  # by which lifelines divides before it penalises
    stacked = pd.DataFrame(inputs).assign(
        time=data.landmarks.time[rows], event=data.landmarks.event[rows], stratum=data.landmarks.stratum[rows]
    )
    fitter = CoxPHFitter(penalizer=0.1 * stacked["event"].sum() / len(stacked) / spread**2, strata=["stratum"])
    fitter.fit(stacked, "time", "event")
    np.testing.assert_allclose(predictor.link[0, : predictor.prepare.num_state], fitter.params_.to_numpy(), atol=1e-4)
    per_seed, _ = predictor.log_hazard_per_seed(data)
    np.testing.assert_allclose(per_seed[:, rows][0], inputs @ predictor.link[0, : inputs.shape[1]], atol=1e-6)


def test_visits_after_the_landmark_change_no_prediction(rng):
    table = random_table(rng)
    predictor, _ = fitted(table)
    before = predictor.predict(table, (1.0,), years=YEARS)
    changed = table.copy()
    changed.loc[table["visit_time"] > 1.0, tables.feature_columns(table)] = 77.0
    after = predictor.predict(changed, (1.0,), years=YEARS)
    pd.testing.assert_frame_equal(after, before, check_exact=True)
    cut = predictor.predict(table[table["visit_time"] <= 1.0].reset_index(drop=True), (1.0,), years=YEARS)
    np.testing.assert_allclose(cut["log_hazard"], before["log_hazard"], atol=1e-6)


def test_row_order_and_the_unit_of_time_change_nothing(rng, tmp_path):
    table = random_table(rng)
    predictor, _ = fitted(table)
    before = predictor.predict(table, years=YEARS)
    shuffled = table.sample(frac=1, random_state=0)
    tables.write_table(shuffled, tmp_path / "t.csv", time_unit="days")
    after = predictor.predict(tables.read_features(tmp_path / "t.csv", time_unit="days"), years=YEARS)
    np.testing.assert_allclose(after["log_hazard"], before["log_hazard"], atol=1e-6)
    np.testing.assert_allclose(after["landmark"], before["landmark"], atol=1e-9)


@pytest.mark.parametrize("columns", [["lab"], ["log_hazard", "feature_0"]])
@pytest.mark.parametrize(("factor", "shift"), [(1e-30, 0.0), (1e-11, 0.0), (1e30, 0.0), (1e3, 1e8)])
def test_the_unit_of_a_column_changes_no_prediction(rng, columns, factor, shift):
    table = random_table(rng, num_subjects=60)
    shift *= columns != ["lab"]  # its logarithm is taken, so its zero means something
    other = table.assign(**{name: table[name] * factor + shift for name in columns})
    expected, predicted = (fitted(visits)[0].predict(visits, (1.0,), years=YEARS) for visits in (table, other))
    pd.testing.assert_frame_equal(predicted, expected, rtol=0, atol=1e-6)


def test_training_is_reproducible_and_never_worse_than_the_link_on_validation(rng):
    table = random_table(rng, num_subjects=60)
    settings = dataclasses.replace(QUICK, epochs=15)
    predictor, history = fitted(table, settings)
    again, _ = fitted(table, settings)
    first, second = (model.predict(table, years=YEARS)["log_hazard"] for model in (predictor, again))
    np.testing.assert_array_equal(first, second)
    assert history["val_loss"].min() <= history["val_loss"].iloc[0]
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_the_kept_epoch_is_the_best_on_validation(rng):
    table = random_table(rng, num_subjects=60)
    settings = dataclasses.replace(QUICK, epochs=60, learning_rate=0.05, patience=60)
    predictor, history = fitted(table, settings)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    data = Histories.of(table, predictor.prepare, (0.5, 1.0, 2.0))
    splits = split_rows(data.landmarks, inner_folds(event, 2, np.random.default_rng(0)), "efron")
    per_seed, _ = predictor.log_hazard_per_seed(data)
    losses = [
        cox.partial_likelihood_loss(own[part.val], part.val_sets) for own, part in zip(per_seed, splits, strict=True)
    ]
    assert np.mean(losses) == pytest.approx(history["val_loss"].min(), abs=1e-4)
    assert history["val_loss"].min() < history["val_loss"].iloc[-1] - 0.01


def test_baselines_and_scales_are_of_the_training_subjects(rng):
    table = random_table(rng, num_subjects=60)
    subjects = np.unique(table["subject"].to_numpy(str))
    is_validated = np.arange(60) % 4 == 0
    validation = np.tile(is_validated, (2, 1))
    predictor, _ = tlstm.fit(table, validation, ["log_hazard", "lab"], grid=(), settings=QUICK)
    own = table[table["subject"].isin(subjects[~is_validated])].reset_index(drop=True)
    again = preparation.Preparation.fit(own, ["log_hazard", "lab"], num_components=0)
    np.testing.assert_array_equal(predictor.prepare(table), again(table))
    predicted = predictor.predict(own, years=YEARS)
    expected = breslow(*(predicted[name].to_numpy() for name in ("log_hazard", "time", "event")))
    np.testing.assert_allclose(predictor.baselines[0].cumulative_hazard, expected.cumulative_hazard, rtol=1e-6)


def test_one_visit_everywhere_is_a_cox_model_and_says_so(rng, caplog):
    table = random_table(rng, num_subjects=60).drop_duplicates("subject").reset_index(drop=True)
    predictor, history = fitted(table, grid=())
    data = Histories.of(table, predictor.prepare)
    assert "Cox model" in caplog.text
    assert len(history) == 1
    np.testing.assert_array_equal(predictor.network.correct(data)[0], 0)


def test_without_the_link_the_network_starts_by_itself(rng):
    predictor, _ = fitted(random_table(rng, num_subjects=60), dataclasses.replace(QUICK, link=False))
    assert (predictor.link == 0).all()
    assert float(predictor.network.head.detach().abs().min()) > 0


def test_recalibration_scales_the_log_hazard(rng):
    table = random_table(rng, num_subjects=60)
    plain, _ = fitted(table)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    validation = inner_folds(event, 2, np.random.default_rng(0))
    data = Histories.of(table, plain.prepare, plain.grid)
    scaled = plain.calibrated(data, validation, ties="efron", recalibrate=True)
    ratio = scaled.predict(table, years=YEARS)["log_hazard"] / plain.predict(table, years=YEARS)["log_hazard"]
    np.testing.assert_allclose(ratio, scaled.slope)
    assert scaled.slope != 1 or plain.slope == 1


def test_survival_curves_are_breslows_of_the_nearest_landmark(rng):
    table = random_table(rng, num_subjects=60)
    predictor, _ = fitted(table)
    predicted = predictor.predict(table, (0.9,), years=YEARS)
    baseline = predictor.baselines[1]  # of landmark 1.0
    steps = np.array([np.append(0, baseline.cumulative_hazard)[(baseline.times <= year).sum()] for year in YEARS])
    expected = np.exp(-steps * np.exp(predicted["log_hazard"].to_numpy())[:, None])
    np.testing.assert_allclose(predicted.filter(like="survival_"), expected, atol=1e-12)


# ---- The saved model --------------------------------------------------------------------------------
def test_saved_and_loaded_predicts_the_same(rng, tmp_path):
    table = random_table(rng)
    predictor, _ = fitted(table)
    tlstm.save(predictor, tmp_path)
    unknown = table.drop(columns=["time", "event"])
    restored = tlstm.load(tmp_path).predict(unknown, years=YEARS)
    expected = predictor.predict(table, years=YEARS)
    pd.testing.assert_frame_equal(restored.drop(columns=["time", "event"]), expected.drop(columns=["time", "event"]))
    with pytest.raises(InputError, match=r"Missing: lab"):
        tlstm.load(tmp_path).predict(unknown.drop(columns="lab"), years=YEARS)


def visits_with(rng, columns, *, with_missing=False, num_visits=None):
    """Visits of 40 subjects with these columns; a fifth of the values may be missing."""
    table = random_table(rng, num_subjects=40).drop(columns=["log_hazard", "lab"])
    table = table[["subject", "visit_time", "time", "event"]]
    if num_visits is not None:
        table = table[table.groupby("subject").cumcount() < num_visits].reset_index(drop=True)
    for name in columns:
        values = pd.Series(rng.gamma(2.0, size=len(table)))
        table[name] = values.mask(rng.random(len(table)) < 0.2) if with_missing else values
    return table


SAVED = {  # columns, how they are, settings of the model
    "laboratory values alone": (["bilirubin", "albumin"], {}, {}),
    "one column": (["bilirubin"], {}, {}),
    "one column with missing values": (["bilirubin"], {"with_missing": True}, {}),
    "features of scans alone": (["feature_1", "feature_2", "feature_3"], {}, {}),
    "one feature of scans": (["feature_7"], {}, {}),
    "features of scans that no component stands for": (["feature_1", "feature_2"], {}, {"components": (0,)}),
    "both, with missing values": (["feature_1", "feature_2", "albumin"], {"with_missing": True}, {}),
    "both, no component": (["feature_1", "albumin"], {}, {"components": (0,)}),
    "without attention": (["albumin"], {}, {"pool": "last"}),
    "without a link": (["albumin", "feature_1"], {}, {"link": False}),
    "one visit a subject": (["albumin"], {"num_visits": 1}, {}),
    "a name with blanks and accents": (["Größe, in cm"], {}, {}),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("grid", [(), (0.5, 1.0)])
def test_whatever_was_saved_is_read_back_and_predicts_the_same(rng, tmp_path, kind, grid):
    columns, how, changed = SAVED[kind]
    table = visits_with(rng, columns, **how)
    predictor, _ = fitted(table, dataclasses.replace(QUICK, **changed), grid)
    tlstm.save(predictor, tmp_path)
    restored = tlstm.load(tmp_path)
    for new in (table, table.head(1), visits_with(rng, columns, with_missing=True)):
        pd.testing.assert_frame_equal(restored.predict(new, years=YEARS), predictor.predict(new, years=YEARS))
    tlstm.save(restored, tmp_path / "again")
    for name in ("model.json", "model.pt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_model_saved_before_there_were_fences_is_read(rng, tmp_path):
    table = random_table(rng)
    predictor, _ = fitted(table)
    tlstm.save(predictor, tmp_path)
    model = json.loads((tmp_path / "model.json").read_text())
    del model["settings"]["winsorise"], model["prepare"]["fences"], model["format"], model["digests"]
    digests = saved_model._digests(model, (tmp_path / "model.pt").read_bytes())
    write_json(tmp_path / "model.json", {"format": saved_model.FORMAT, "digests": digests, **model})
    restored = tlstm.load(tmp_path)
    pd.testing.assert_frame_equal(restored.predict(table, years=YEARS), predictor.predict(table, years=YEARS))


def test_a_damaged_model_is_refused(rng, tmp_path):
    predictor, _ = fitted(random_table(rng))
    with pytest.raises(InputError, match="found none"):
        tlstm.load(tmp_path)
    tlstm.save(predictor, tmp_path)
    model = json.loads((tmp_path / "model.json").read_text())
    for name, wrong in (
        ("format", 0),
        ("link", [[0]]),
        ("baselines", []),
        ("settings", {"hidden": 3}),
        ("prepare", None),
    ):
        (tmp_path / "model.json").write_text(json.dumps(model | {name: wrong}))
        with pytest.raises(InputError, match=r"expected format|damaged"):
            tlstm.load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(model))
    whole = (tmp_path / "model.pt").read_bytes()
    for damage in (b"", b"not a model", whole[: len(whole) // 2]):
        (tmp_path / "model.pt").write_bytes(damage)
        with pytest.raises(InputError, match="damaged"):
            tlstm.load(tmp_path)


# ---- The command line --------------------------------------------------------------------------------
def run_alone(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tlstm.py"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


QUICK_ARGUMENTS = ("--TLSTM_EPOCHS", 3, "--NUM_SEEDS", 2, "--NUM_RESAMPLES", 100)


@pytest.fixture
def features(rng, tmp_path):
    """OUTPUT_DIR with features of 60 subjects."""
    parts = split_subjects(random_table(rng, num_subjects=60), test_ratio=0.25, val_train_ratio=0.25, seed=0)
    for name, part in parts.items():
        tables.write_table(part, tmp_path / "features" / f"{name}.parquet")
    return tmp_path


def test_a_run_writes_its_folder(features):
    (features / "metrics.json").write_text('{"cnn": {"kept": 1}}')
    done = run_alone("--OUTPUT_DIR", features, *QUICK_ARGUMENTS)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((features / "metrics.json").read_text())
    assert metrics["cnn"] == {"kept": 1}
    assert set(metrics["tlstm"]) == {"train", "val", "test"}
    assert {"n", "events", "c_index", "uno_c", "auc", "ibs", "hazard_ratio", "calibration"} <= set(
        metrics["tlstm"]["test"]
    )
    predicted = pd.read_csv(features / "tlstm" / "predictions.csv")
    assert predicted.columns[:6].tolist() == ["subjectid", "split", "landmark", "time", "convert_status", "log_hazard"]
    assert {"survival_0.25", "survival_2.0", "survival_5.0", "attention_1"} <= set(predicted.columns)
    parts = {name: tables.read_features(features / "features" / f"{name}.parquet") for name in PARTS}
    for name, part in parts.items():
        assert set(predicted.loc[predicted["split"] == name, "subjectid"]) == set(part["subject"])
    test = predicted[predicted["split"] == "test"].reset_index(drop=True)
    again = tlstm.load(features / "tlstm").predict(parts["test"], years=np.array([2.0]))
    np.testing.assert_allclose(again["log_hazard"], test["log_hazard"], atol=1e-6)
    np.testing.assert_allclose(again["survival_2.0"], test["survival_2.0"], atol=1e-6)
    assert pd.read_csv(features / "tlstm" / "history.csv").columns.tolist() == ["epoch", "train_loss", "val_loss"]


def run_here(*arguments):
    """As `run_alone`, without the seconds that imports take."""
    return tlstm.main([str(argument) for argument in (*arguments, *QUICK_ARGUMENTS)])


def bad_tables(table):
    """Tables that are refused, by a part of the message."""
    no_event = table.assign(event=False)
    twice = pd.concat([table, table.iloc[[3]]])
    return {
        "no event": no_event,
        "two visits of one subject": twice,
        "log_hazard: one value": table.assign(log_hazard=3.0),
        "feature_2: text": table.assign(feature_2=np.where(table["lab"] > 1, "high", "low")),
        "at or after": table.assign(visit_time=table["visit_time"] + 50),
    }


def files_in(folder):
    """Names of what lies in a run's folder, but for its lock."""
    return [path.name for path in folder.rglob("*") if path.name not in (".lock", ".run.json")]


@pytest.mark.parametrize("number", range(5))
def test_a_bad_table_is_one_message_and_overwrites_nothing(rng, tmp_path, capsys, number):
    what, bad = list(bad_tables(random_table(rng, num_subjects=40)).items())[number]
    tables.write_table(bad, tmp_path / "t.csv")
    (tmp_path / "o" / "tlstm").mkdir(parents=True)
    (tmp_path / "o" / "tlstm" / "predictions.csv").write_text("earlier")
    assert run_here("--FEATURES", tmp_path / "t.csv", "--OUTPUT_DIR", tmp_path / "o") == 2
    assert what in capsys.readouterr().err
    assert files_in(tmp_path / "o") == ["tlstm", "predictions.csv"]
    assert (tmp_path / "o" / "tlstm" / "predictions.csv").read_text() == "earlier"


def test_a_mistake_is_one_message_without_a_traceback(tmp_path):
    done = run_alone("--OUTPUT_DIR", tmp_path, "--NUM_SEEDS", 0)
    assert done.returncode == 2
    assert "NUM_SEEDS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--LANDMARKS", "30"], "landmark 30"),
        (["--FOLDS", "5"], "as many WINDOWS"),
        (["--FOLDS", "5", "--LANDMARKS", "1,2", "--WINDOWS", "1"], "as many WINDOWS"),
        (["--NUM_SEEDS", "0"], "NUM_SEEDS"),
    ],
)
def test_bad_settings_are_one_message(rng, tmp_path, capsys, arguments, message):
    tables.write_table(random_table(rng, num_subjects=40), tmp_path / "t.csv")
    code = tlstm.main(["--FEATURES", str(tmp_path / "t.csv"), "--OUTPUT_DIR", str(tmp_path / "o"), *arguments])
    assert code == 2
    assert message in capsys.readouterr().err
    assert files_in(tmp_path / "o") == []


def test_absent_features_are_named(tmp_path, capsys):
    assert tlstm.main(["--OUTPUT_DIR", str(tmp_path)]) == 2
    assert "Run python main.py first" in capsys.readouterr().err


def test_help_needs_no_tensorflow():
    done = run_alone("--help")
    assert done.returncode == 0
    assert "--FOLDS" in done.stdout
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tlstm; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# ---- That recurrence works ---------------------------------------------------------------------------
def test_what_another_setting_does_not_make_is_removed(rng, tmp_path):
    """With LANDMARKS there are no predictions by visit: those of a run without must not be told as this one's."""
    (tmp_path / "o").mkdir()
    tables.write_table(feature_table(60, rng, "s"), tmp_path / "t.csv")
    quick = dict(FEATURES=tmp_path / "t.csv", OUTPUT_DIR=tmp_path / "o", NUM_SEEDS=1, HIDDEN=4, TLSTM_EPOCHS=2)
    quick |= dict(COMPONENTS=(0,), PENALTIES=(0.1,), NUM_RESAMPLES=100)
    tlstm.run(Config(**quick), 1)
    assert (tmp_path / "o" / "tlstm" / "by_visit.csv").exists()
    tlstm.run(Config(**quick, LANDMARKS=(1.0,)), 1)
    assert not (tmp_path / "o" / "tlstm" / "by_visit.csv").exists()
    assert set(pd.read_csv(tmp_path / "o" / "tlstm" / "predictions.csv")["landmark"]) == {1.0}


def gain_over_last_values(slope_effect):
    """Mean C over folds, ours minus the ridge Cox on the last values."""
    table, columns = slope_table(600, slope_effect=slope_effect, seed=0), ["marker", "noise"]

    def ours(train, validation):
        return crossval.Trained.of(*tlstm.fit(train, validation, columns, grid=(2.0,), settings=SHIPPED))

    models = {crossval.OUR_MODEL: ours, "locf_cox": rivals.linear_rival(columns, SHIPPED.penalties, ())}
    compared = crossval.compare_models(table, models, crossval.Plan((2.0,), (5.0,), 3, 1, 5, 0))
    return crossval.summarise(compared.figures)["2+5"]["difference"]["locf_cox"]["c_index"]["value"]


@pytest.mark.slow
def test_a_hazard_driven_by_the_slope_is_learned_from_the_history():
    assert gain_over_last_values(slope_effect=1.0) > 0.05


@pytest.mark.slow
def test_no_gain_where_the_slope_says_nothing():
    assert gain_over_last_values(slope_effect=0.0) < 0.01
