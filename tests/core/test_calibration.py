import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.calibration import Calibration, combine_classes, images_needed, is_anomaly

SCORES = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=60)


@given(SCORES, st.integers(-1, 31).map(float))
def test_p_value_is_its_definition(held_out, score):
    expected = (1 + sum(h >= score for h in held_out)) / (len(held_out) + 1)
    assert Calibration.of(np.array(held_out)).p_value(np.array([score]))[0] == expected


@given(SCORES, st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9]))
def test_threshold_and_p_value_decide_alike(held_out, fpr):
    c = Calibration.of(np.array(held_out))
    candidates = np.unique([*held_out, *(h + 0.5 for h in held_out), -1.0, 99.0])
    by_p = is_anomaly(c.p_value(candidates), c.effective_fpr(fpr))
    assert np.array_equal(by_p, candidates > c.threshold(fpr))


@pytest.mark.parametrize(("fpr", "n"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3)])
def test_images_needed_are_just_enough(fpr, n):
    assert images_needed(fpr) == n
    assert Calibration.of(np.arange(n)).effective_fpr(fpr) == pytest.approx(fpr)
    assert Calibration.of(np.arange(n - 1)).effective_fpr(fpr) > fpr * 1.001


def test_false_positive_rate_keeps_its_promise():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        c = Calibration.of(rng.normal(size=59))
        rates.append(is_anomaly(c.p_value(rng.normal(size=200)), c.effective_fpr(0.1)).mean())
    # exact expectation 6/60; the mean of 400 trials has a standard error of 0.002
    assert np.mean(rates) == pytest.approx(0.1, abs=0.008)


def test_largest_p_value_wins_and_likelihood_breaks_ties():
    p = np.array([[0.2, 0.5], [0.1, 0.1], [0.1, 0.1]])
    likelihood = np.array([[0.0, -9.0], [-5.0, -2.0], [-1.0, -2.0]])
    assert combine_classes(p, likelihood).tolist() == [1, 1, 0]
