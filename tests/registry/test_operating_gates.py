from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.registry.candidate import Candidate
from dfm_mlflow.registry.operating_gates import false_alarm_gate, recall_gate

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def candidate():
    detector = fit({"stripes": pictures(40)}, fpr="0.05")
    return Candidate(SimpleNamespace(version="7"), detector, 1, {})


def options(**given):
    return PromoteOptions.parse({"model": "m", "version": "7", "to": "production", **given})


def table(good, flagged, bad=0, found=0, near=0, category="stripes"):
    p = [0.01] * flagged + [0.9] * (good - flagged)
    p = np.array(p + [0.01] * found + [0.08] * near + [0.9] * (bad - found - near))
    return pd.DataFrame(
        {
            "category": category,
            "defective": [False] * good + [True] * bad,
            "p_value": p,
            "predicted_class": "stripes",
            "is_anomaly": p <= 0.05,
        }
    )


def test_recall_zero_is_refused_by_name_with_what_would_help(candidate):
    gate = recall_gate(candidate, options(), table(30, 0, 40, 0, near=31))
    assert not gate.passed
    assert gate.may_be_forced
    assert gate.sentence.startswith(
        "Recall 0.00: version 7 finds 0 of 40 defective pictures at its threshold, which is below "
        "min_recall=0.5: at fpr 0.1 it would find 31 of 40"
    )
    assert gate.figures["recall"] == 0
    assert recall_gate(candidate, options(), table(30, 0, 40, 20)).passed
    assert recall_gate(candidate, options(min_recall="0"), table(30, 0, 40, 0)).passed
    assert recall_gate(candidate, options(), table(30, 0)).figures == {}


def test_recall_is_the_mean_of_the_categories_and_names_the_least(candidate):
    both = pd.concat([table(5, 0, 100, 100), table(5, 0, 10, 0, category="bands")])
    gate = recall_gate(candidate, options(min_recall="0.6"), both)
    assert gate.figures["recall"] == 0.5
    assert not gate.passed
    assert "(least of bands, 0.00)" in gate.sentence


def test_false_alarms_beyond_chance_are_refused_and_those_of_chance_are_not(candidate):
    for flagged, passes in ((0, True), (1, True), (4, True), (12, False), (30, False)):
        gate = false_alarm_gate(candidate, table(30, flagged, 5, 5))
        assert gate.passed == passes, flagged
        assert gate.figures["false_positive_rate"] == flagged / 30
    assert "5.00\u00a0% is expected" in gate.sentence
    assert "recalibrate on new ones" in gate.sentence
    assert false_alarm_gate(candidate, table(0, 0, 5, 5)).figures == {}
