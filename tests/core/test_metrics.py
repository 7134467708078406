import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from dfm_mlflow.core.metrics import auroc, decision_metrics, ranking_metrics


def test_metrics_of_a_small_example():
    defective = np.array([False, False, False, True, True])
    scores = np.array([1.0, 2, 4, 3, 5])
    ranking = ranking_metrics(defective, scores)
    assert ranking["image_auroc"] == pytest.approx(5 / 6)
    assert ranking["image_f1_max"] == pytest.approx(0.8)
    decided = decision_metrics(defective, scores > 3.5)
    assert decided == {
        "image_f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "false_positive_rate": 1 / 3,
        "false_negative_rate": 0.5,
    }
    assert ranking_metrics(defective[:3], scores[:3]) == {}
    # of good pictures alone precision and F1 would be 0 or nothing, whatever the model
    assert set(decision_metrics(defective[:3], scores[:3] > 3)) == {"false_positive_rate"}


TESTED = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=50)


@given(TESTED, st.integers(0, 9))
def test_decisions_are_scikit_learn_s_and_what_has_no_denominator_is_left_out(pictures, limit):
    defective, scores = (np.array(column) for column in zip(*pictures, strict=True))
    defective, flagged = defective.astype(bool), scores > limit
    found = decision_metrics(defective, flagged)
    expected = {
        "image_f1": f1_score(defective, flagged, zero_division=np.nan),
        "precision": precision_score(defective, flagged, zero_division=np.nan),
        "recall": recall_score(defective, flagged, zero_division=np.nan),
        # the share of good ones that pass is the recall of the other kind
        "false_positive_rate": 1 - recall_score(~defective, ~flagged, zero_division=np.nan),
    }
    if not defective.any():
        expected |= {"image_f1": np.nan, "precision": np.nan}
    for name, value in expected.items():
        assert found.get(name, np.nan) == pytest.approx(value, nan_ok=True), name
    assert ("recall" in found) == defective.any() == ("false_negative_rate" in found)
    if defective.any():
        assert found["recall"] + found["false_negative_rate"] == pytest.approx(1)


@given(TESTED)
def test_ranking_asks_for_the_order_alone_and_its_best_f1_is_the_best(pictures):
    defective, scores = (np.array(column) for column in zip(*pictures, strict=True))
    defective = defective.astype(bool)
    found = ranking_metrics(defective, scores)
    if defective.all() or not defective.any():
        assert found == {}
        assert auroc(defective, scores) is None
        return
    assert ranking_metrics(defective, np.exp(scores / 2.0) - 5) == found
    assert auroc(~defective, -scores) == pytest.approx(auroc(defective, scores))
    best = max(f1_score(defective, scores >= limit) for limit in scores)
    assert found["image_f1_max"] == pytest.approx(best)
