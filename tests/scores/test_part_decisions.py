"""One decision a part: what it says, and that it keeps its promise."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.scores.part_decisions import (
    PART_COLUMNS,
    part_decisions,
    part_metrics,
    promise_of,
)


def detector(scores, fpr=0.05, name="a"):
    model = SimpleNamespace(name=name, calibration=Calibration.of(scores))
    return SimpleNamespace(options=SimpleNamespace(fpr=fpr), classes=[model])


def table(p_values, errors=None):
    return pd.DataFrame(
        {"p_value": p_values, "predicted_class": "a", "error": errors or [None] * len(p_values)}
    )


def test_a_part_has_the_smallest_p_value_times_the_number_of_its_pictures():
    found = part_decisions(
        detector(np.arange(999.0)), table([0.5, 0.01, 0.4, 0.9, 0.02]), ["x", "x", "y", "y", "z"]
    )
    assert list(found.columns) == list(PART_COLUMNS)
    assert list(found["part"]) == ["x", "x", "y", "y", "z"]
    np.testing.assert_allclose(found["part_p_value"], [0.02, 0.02, 0.8, 0.8, 0.02])
    assert list(found["part_is_anomaly"]) == [True, True, False, False, True]


def test_it_is_at_most_1_and_keeps_the_index():
    given = table([0.9, 0.8]).set_index(pd.Index([7, 3]))
    found = part_decisions(detector(np.arange(99.0)), given, ["x", "x"])
    assert list(found["part_p_value"]) == [1.0, 1.0]
    assert list(found.index) == [7, 3]


def test_order_and_neighbours_do_not_matter():
    rng = np.random.default_rng(0)
    p, parts = rng.uniform(size=60), rng.integers(0, 9, 60).astype(str)
    one = part_decisions(detector(np.arange(99.0)), table(p), parts)
    order = rng.permutation(60)
    other = part_decisions(detector(np.arange(99.0)), table(p[order]), parts[order])
    pd.testing.assert_frame_equal(one.iloc[order].reset_index(drop=True), other)


def test_a_part_with_a_picture_that_could_not_be_scored_is_not_known_to_be_good():
    given = table([0.5, np.nan, 0.001, np.nan], [None, "broken", None, "broken"])
    given.loc[[1, 3], "predicted_class"] = None
    found = part_decisions(detector(np.arange(999.0)), given, ["x", "x", "y", "y"])
    assert found["part_is_anomaly"].isna().tolist() == [True, True, False, False]
    assert found["part_p_value"].isna().tolist() == [True, True, False, False]
    assert found["part_is_anomaly"].tolist()[2:] == [True, True]
    np.testing.assert_allclose(found["part_p_value"][2:], 0.002)
    alone = part_decisions(detector(np.arange(9.0)), given.iloc[[1]], ["x"])
    assert alone["part_is_anomaly"].isna().all()


@pytest.mark.parametrize("together", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("n", "fpr"), [(400, 0.05), (30, 0.05)])
def test_the_promise_is_kept_whatever_the_views_have_in_common(together, n, fpr):
    """With few held-out pictures it is the number of views by the smallest p-value."""
    rng = np.random.default_rng(1)
    views, n_parts, flagged = 4, 100, []
    for _ in range(40):
        judge = detector(rng.normal(size=n), fpr)
        shared = rng.normal(size=(n_parts, 1))
        scores = together * shared + np.sqrt(1 - together**2) * rng.normal(size=(n_parts, views))
        p = judge.classes[0].calibration.p_value(scores.ravel())
        found = part_decisions(judge, table(p), np.repeat(np.arange(n_parts), views).astype(str))
        flagged.append(found["part_is_anomaly"].astype(bool).to_numpy()[::views].mean())
    promise = max(fpr, views / (n + 1))
    assert np.mean(flagged) < promise + 3 * np.std(flagged) / np.sqrt(len(flagged))
    if together == 0 and n == 400:  # views without anything in common use nearly all of it
        assert np.mean(flagged) > 0.8 * promise


def test_decisions_on_parts_are_measured():
    given = table([0.5, 0.001, 0.4, 0.9, np.nan], [None] * 4 + ["broken"])
    given["defective"] = [False, True, False, False, False]
    judge = detector(np.arange(999.0))
    given = given.join(part_decisions(judge, given, ["x", "x", "y", "y", "z"]))
    assert part_metrics(given) == {
        "n_parts": 2,
        "part_recall": 1.0,
        "part_false_positive_rate": 0.0,
    }
    assert part_metrics(given.drop(columns="part")) == {}


def test_the_promise_is_said():
    parts = ["x"] * 4 + ["y"] * 2
    said = promise_of(detector(np.arange(999.0)), parts)
    assert said.startswith("2 parts of 2 to 4 pictures")
    assert said.endswith("at most 0.05 of good parts are flagged.")
    few = promise_of(detector(np.arange(29.0)), parts)
    assert "at most 0.133 of good parts" in few
    assert "4 pictures need p-values of 0.0125, and the calibration ends at 0.0333" in few
