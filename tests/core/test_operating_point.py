import numpy as np
import pytest
from scipy.stats import betabinom, binom, binomtest

from dfm_mlflow.core.calibration import Calibration, is_anomaly
from dfm_mlflow.core.operating_point import Costs, Promise, exact_interval, false_alarm_chance


def flagged_counts(rng, n, m, fpr, repeats=20_000):
    """How many of m new good scores are flagged, as often as it takes: all are alike in law."""
    scores = rng.normal(size=(repeats, n + m))
    held_out, new = np.sort(scores[:, :n], axis=1), scores[:, n:]
    above = n - np.array([np.searchsorted(h, s) for h, s in zip(held_out, new, strict=True)])
    return is_anomaly((1 + above) / (n + 1), max(fpr, 1 / (n + 1))).sum(axis=1)


@pytest.mark.parametrize(("n", "m", "fpr"), [(30, 40, 0.1), (30, 40, 0.01), (99, 20, 0.02)])
def test_the_chance_is_that_of_exchangeable_images(n, m, fpr):
    counts = flagged_counts(np.random.default_rng(0), n, m, fpr)
    promise = Promise.of(Calibration.of(np.arange(n)), fpr)
    for k in (0, 1, 2, 4, 8):
        expected = false_alarm_chance(k, [(m, promise)])
        assert (counts >= k).mean() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("m", "n", "k"), [(3, 4, 0.2), (40, 60, 1), (500, 100, 3.4)])
def test_chances_are_those_of_scipy(m, n, k):
    expected = betabinom(m, k, n + 1 - k).sf(np.arange(m + 1) - 1)
    found = [false_alarm_chance(f, [(m, Promise(k, n))]) for f in range(m + 1)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 50), (999, 1000)])
def test_intervals_are_those_of_scipy(k, n):
    expected = binomtest(k, n).proportion_ci(0.9, method="exact")
    assert exact_interval(k, n, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_categories_add_up_as_independent_counts():
    rng = np.random.default_rng(1)
    counts = flagged_counts(rng, 30, 20, 0.1) + flagged_counts(rng, 99, 20, 0.02)
    parts = [
        (20, Promise.of(Calibration.of(np.arange(30)), 0.1)),
        (20, Promise.of(Calibration.of(np.arange(99)), 0.02)),
    ]
    for k in (1, 3, 6):
        assert (counts >= k).mean() == pytest.approx(false_alarm_chance(k, parts), abs=0.015)


def test_what_dirt_left_out_may_be_good_images():
    """With m of n left out, the threshold is the (k + m)-th largest of all that were there."""
    found = Promise.of(Calibration.of(np.arange(100.0), contamination=0.1), 0.05)
    assert (found.k, found.n) == (4 + 10, 100)


def test_many_held_out_images_make_it_binomial():
    promise = Promise.of(Calibration.of(np.arange(10**5 - 1)), 0.05)
    assert false_alarm_chance(5, [(40, promise)]) == pytest.approx(binom.sf(4, 40, 0.05), abs=1e-3)


def test_ends():
    promise = Promise.of(Calibration.of(np.arange(30)), 0.1)
    assert false_alarm_chance(0, [(40, promise)]) == 1
    assert false_alarm_chance(1, []) == 0
    everything = Promise.of(Calibration.of(np.arange(3)), 0.9999999999)
    assert false_alarm_chance(40, [(40, everything)]) <= 1
    low, high = exact_interval(0, 30)
    assert low == 0
    assert (1 - high) ** 30 == pytest.approx(0.025)  # so rare with none seen


def test_costs_weigh_escapes_and_overkill():
    costs = Costs(escape=50, overkill=2, defect_rate=0.01)
    assert costs.expected(1, 0) == 0
    assert costs.expected(0, 0) == pytest.approx(0.5)
    assert costs.expected(0.8, 0.05) == pytest.approx(0.01 * 0.2 * 50 + 0.99 * 0.05 * 2)
