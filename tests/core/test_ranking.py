import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from dfm_mlflow.core.ranking import (
    area_under_roc,
    average_precision,
    counts_above,
    precision_recall_curve,
    roc_curve,
)

TESTED = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=60)


def test_counts_go_from_none_to_all_and_equal_scores_go_together():
    good, bad = counts_above(np.array([True, False, False, True]), np.array([3.0, 2, 2, 2]))
    assert good.tolist() == [0, 0, 2]
    assert bad.tolist() == [0, 1, 2]


@given(TESTED)
def test_curves_and_areas_are_scikit_learn_s(pictures):
    defective, scores = (np.array(column) for column in zip(*pictures, strict=True))
    defective, scores = defective.astype(bool), scores / 7
    if defective.all() or not defective.any():
        return
    for ours, theirs in (
        (
            roc_curve(defective, scores),
            metrics.roc_curve(defective, scores, drop_intermediate=False),
        ),
        (
            precision_recall_curve(defective, scores),
            metrics.precision_recall_curve(defective, scores),
        ),
    ):
        for one, other in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(one, other, atol=1e-12)
    curve = precision_recall_curve(defective, scores)
    expected = metrics.average_precision_score(defective, scores)
    assert average_precision(*curve) == pytest.approx(expected, abs=1e-12)
    expected = metrics.roc_auc_score(defective, scores)
    assert area_under_roc(defective, scores) == pytest.approx(expected, abs=1e-12)
