"""Text as columns of 0 and 1: levels of training alone, what is missing, what training did not have, and the file."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from runs import files
from survival.coding import Coding, find_levels
from survival.estimates import Baseline
from survival.predictor import Predictor
from survival.preparation import Preparation
from survival.ranges import find_out_of_range


def visits(**columns):
    """Six visits of four subjects with further columns."""
    subject, years = ["p", "p", "q", "r", "r", "s"], [0.0, 1.0, 0.0, 0.0, 0.5, 0.0]
    return pd.DataFrame({"subject": subject, "visit_time": years, "time": 5.0, "event": True, **columns})


SEX = ["M", "M", "F", "F", "F", "M"]
SITE = ["Oslo", "Oslo", "Rome", "Bonn", "Bonn", "Oslo"]


@pytest.mark.parametrize(
    ("cells", "coded"),
    [
        (SEX, {"x=M": [1, 1, 0, 0, 0, 1]}),
        (["no", "yes", "no", "no", "no", "no"], {"x=yes": [0, 1, 0, 0, 0, 0]}),
        (["T", "F", "T", "T", "T", "T"], {"x=T": [1, 0, 1, 1, 1, 1]}),
        (["m", "M ", " M", "F", "f", "F"], {"x=M": [1, 1, 1, 0, 0, 0]}),
        (["b  c", "b\nc", "B c", "a", "a", "a\t"], {"x=b c": [1, 1, 1, 0, 0, 0]}),
        (
            SITE,
            {"x=Bonn": [0, 0, 0, 1, 1, 0], "x=Oslo": [1, 1, 0, 0, 0, 1], "x=Rome": [0, 0, 1, 0, 0, 0]},
        ),
        (["only"] * 6, {}),
    ],
)
def test_two_levels_are_one_column_and_more_a_column_each(cells, coded):
    table = visits(x=cells)
    coding = Coding.fit(table, ["x"])
    assert coding.columns_of("x") == list(coded)
    assert {name: coding(table)[name].tolist() for name in coded} == coded


def test_coding_equals_scikit_learns_one_hot():
    from sklearn.preprocessing import OneHotEncoder

    table = visits(sex=SEX, site=SITE)
    coding = Coding.fit(table, ["sex", "site"])
    names = [new for name in ("sex", "site") for new in coding.columns_of(name)]
    expected = OneHotEncoder(drop="if_binary", sparse_output=False).fit_transform(table[["sex", "site"]])
    np.testing.assert_array_equal(coding(table)[names], expected)


def test_missing_and_unseen_levels_are_missing_in_every_new_column():
    coding = Coding.fit(visits(site=SITE), ["site"])
    new = coding(visits(site=["Oslo", None, np.nan, "Bern", "rome", "Bonn"]))
    assert new["site"].isna().tolist() == [False, True, True, True, False, False]
    for level in ("Bonn", "Oslo", "Rome"):
        assert new[f"site={level}"].isna().tolist() == new["site"].isna().tolist()
    assert new["site=Rome"].tolist()[4] == 1
    pd.testing.assert_frame_equal(coding(new), new)  # coding twice changes nothing
    assert coding(visits(site=np.nan))["site=Oslo"].isna().all()


@pytest.mark.parametrize(("level", "who"), [("Bern", ["p"]), ("B\nWARNING forged", ["p"])])
def test_levels_that_training_did_not_have_are_named_and_counted(caplog, level, who):
    coding = Coding.fit(visits(site=SITE, sex=SEX), ["site", "sex"])
    new = visits(site=[level, level, "Oslo", None, "oslo", "Rome"], sex=SEX)
    level = " ".join(level.split())  # a line of the log stays a line
    assert coding.unseen(new).to_numpy().tolist() == [[subject, "site", level] for subject in who]
    coding.warn_of_unseen({"train": visits(site=SITE, sex=SEX), "test": new})
    assert (
        f"site: {level!r}, which no training subject has, counts as missing for 1 subjects of the test" in caplog.text
    )
    assert caplog.text.count("\n") == 1


def test_levels_are_in_their_most_frequent_spelling_and_in_order():
    assert find_levels(pd.Series(["b", "B", "B", None, "a ", "a", "C"])) == ("a", "B", "C")
    assert find_levels(pd.Series([np.nan, np.nan])) == ()


# ---- Within the preparation ----------------------------------------------------------------------------
def fitted(table, columns=("sex", "site", "age")):
    return Preparation.fit(table, list(columns), num_components=0)


def training():
    return visits(sex=SEX, site=SITE, age=[60.0, 61, 70, 65, np.nan, 50])


def test_the_inputs_are_those_of_a_table_coded_by_hand():
    table = training()
    by_hand = table.drop(columns=["sex", "site"]).assign(
        **{"sex=M": [1.0, 1, 0, 0, 0, 1], "site=Bonn": [0.0, 0, 0, 1, 1, 0]},
        **{"site=Oslo": [1.0, 1, 0, 0, 0, 1], "site=Rome": [0.0, 0, 1, 0, 0, 0]},
    )
    columns = ["sex=M", "site=Bonn", "site=Oslo", "site=Rome", "age"]
    prepare = fitted(table)
    assert prepare.columns == tuple(columns) and sorted(prepare.needed) == ["age", "sex", "site"]
    np.testing.assert_array_equal(prepare(table), fitted(by_hand, columns)(by_hand))


@pytest.mark.parametrize("lost", ["Oslo", "Bonn"])
def test_a_missing_text_is_the_subjects_last_level_or_the_most_frequent(lost):
    table = training().assign(site=["Rome", None, None, lost, lost, lost])
    prepare = fitted(table)
    assert prepare.missing == ("site", "age")
    state = prepare(table)[:, : prepare.num_state] / np.where(prepare.state.factor > 0, prepare.state.factor, 1)
    state = state + prepare.state.centre
    place = prepare.columns.index("site=Rome")  # of two levels, the later one
    is_rome = state[:, place] / prepare.scale.factor[place] + prepare.scale.centre[place]
    np.testing.assert_allclose(is_rome, [1, 1, 0, 0, 0, 0], atol=1e-12)  # p's last level; q never had one
    np.testing.assert_allclose(state[:, len(prepare.columns)], [0, 1, 1, 0, 0, 0], atol=1e-12)  # its indicator


def test_of_three_levels_the_most_frequent_replaces_a_missing_one():
    table = training().assign(site=["Rome", "Oslo", None, "Bonn", "Bonn", "Oslo"], sex=SEX)
    median = dict(zip(fitted(table).columns, fitted(table).median, strict=True))
    assert [median[f"site={level}"] for level in ("Bonn", "Oslo", "Rome")] == [1, 0, 0]  # Bonn and Oslo: two each


@pytest.mark.parametrize("columns", [("sex",), ("sex", "site", "age"), ("age",), ("site", "age")])
def test_a_coding_is_kept_as_json_and_restored(columns):
    table = training()
    prepare = fitted(table, columns)
    saved = json.loads(json.dumps(dataclasses.asdict(prepare), default=files._plain))
    restored = Preparation.from_json(saved)
    np.testing.assert_array_equal(restored(table), prepare(table))
    assert restored.coding == prepare.coding
    if columns == ("age",):  # saved by a version that knew no text
        del saved["coding"]
        np.testing.assert_array_equal(Preparation.from_json(saved)(table), prepare(table))


@pytest.mark.parametrize(
    ("columns", "absent"),
    [
        ({"sex": [0.0, 1, 0, 1, 0, 1]}, ["sex"]),
        ({"age": ["old"] * 6}, ["age"]),
        ({"site": np.nan, "age": np.nan}, []),
        ({"sex": True, "site": 3}, ["sex", "site"]),
    ],
)
def test_numbers_for_text_and_text_for_numbers_are_refused_by_name(columns, absent):
    table = training()
    assert fitted(table).absent_from(table.assign(**columns)) == absent
    assert fitted(table).absent_from(table.drop(columns="age")) == ["age"]


def test_new_subjects_hear_of_levels_that_training_did_not_have():
    table = training()
    prepare = fitted(table)
    predictor = Predictor(
        prepare, (), np.zeros((1, prepare.num_inputs)), baselines=(Baseline(np.ones(1), np.zeros(1)),)
    )
    assert find_out_of_range(predictor, table).empty
    new = table.assign(site=["Bern", "Oslo", "Lund", None, None, "rome"], subject=["n", "n", "o", "o", "o", "s"])
    new["visit_time"] = [0.0, 1.0, 0.0, 0.5, 1.0, 0.0]
    found = find_out_of_range(predictor, new)
    unseen = found[found["cause"].str.contains("has a level that training did not have")]
    assert unseen[["subject", "received"]].to_numpy().tolist() == [["n", "Bern"], ["o", "Lund"]]
    missing = found[
        found["cause"] == "site is missing at every visit and counts as the training subjects' most frequent level"
    ]
    assert missing["subject"].tolist() == ["o"]
    assert len(found) == 3
    assert not predictor.predict(new.drop(columns=["time", "event"]), years=(1.0,))["log_hazard"].isna().any()
