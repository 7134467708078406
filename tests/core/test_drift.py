import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from dfm_mlflow.core.drift import measure_drift
from dfm_mlflow.core.leading_coordinates import calibration_ranks, rank_correlation


def batch(rng, n, m, shift=0.0, columns=3, known=None):
    """P-values and places of m pictures among n of the same distribution, or shifted."""
    known = rng.normal(size=(n, columns + 1)) if known is None else known
    new = rng.normal(size=(m, columns + 1)) + shift
    ranks = (1 + (known[None] >= new[:, None]).sum(axis=1)) / (n + 1)
    return ranks[:, 0], ranks[:, 1:] - 0.5 / (n + 1)


def test_place_is_tested_as_wilcoxon_mann_whitney():
    rng = np.random.default_rng(3)
    known, new = rng.normal(size=40), rng.normal(size=70) + 0.5
    ranks = calibration_ranks(np.sort(known)[:, None], new[:, None])[:, 0]
    # p-values that are all 1 are no evidence, so the least likely is the coordinate
    drift = measure_drift(np.ones(70), np.zeros(70, bool), ranks[:, None], 40)
    expected = mannwhitneyu(known, new, use_continuity=False, method="asymptotic")
    assert drift.significance == pytest.approx(2 * expected.pvalue)
    assert drift.appearance == pytest.approx(abs(2 * expected.statistic / (40 * 70) - 1))


@pytest.mark.parametrize(("n", "m"), [(20, 300), (300, 20)])
def test_false_alarms_keep_to_their_rate(n, m):
    rng = np.random.default_rng(0)
    seen = [measure_drift(*args, n) for args in _draws(rng, n, m)]
    alarms = np.array([drift.significance for drift in seen])
    assert (alarms <= 0.05).mean() <= 0.07  # of 400: two standard errors above 0.05
    assert (alarms <= 0.05).mean() >= 0.01  # and the test is no empty one


@pytest.mark.parametrize(("n", "m"), [(60, 300), (300, 20)])
def test_together_they_keep_to_it_however_they_are_correlated(n, m):
    rng, alarms = np.random.default_rng(4), []
    mix = np.eye(6) + 0.8 * rng.normal(size=(6, 6))
    for _ in range(400):
        known, new = rng.normal(size=(n, 6)) @ mix, rng.normal(size=(m, 6)) @ mix
        ranks = calibration_ranks(np.sort(known, axis=0), new)
        found = {0: rank_correlation([known[:, :2], known[:, 2:]])}
        drift = measure_drift(np.ones(m), np.zeros(m, bool), ranks, n, None, found)
        alarms.append(drift.significance)
    assert 0.01 <= np.mean(np.array(alarms) <= 0.05) <= 0.07


def test_many_small_moves_are_found_together():
    rng = np.random.default_rng(5)
    known, new = rng.normal(size=(300, 10)), rng.normal(size=(80, 10)) + 0.3
    ranks = calibration_ranks(np.sort(known, axis=0), new)
    args = np.ones(80), np.zeros(80, bool), ranks, 300
    together = measure_drift(*args, None, {0: rank_correlation([known])}).significance
    assert together < 1e-4 < measure_drift(*args).significance


def _draws(rng, n, m):
    for _ in range(400):
        p, ranks = batch(rng, n, m)
        yield p, p <= 0.05, ranks


def test_small_p_values_are_drift_and_large_ones_are_not():
    rng = np.random.default_rng(1)
    for shift, found in ((1.0, True), (-1.0, False)):
        p = batch(rng, 100, 60, shift)[0]
        drift = measure_drift(p, p <= 0.05, np.empty((60, 0)), 100)
        assert (drift.significance < 1e-4) == found
        assert (drift.statistic > 0.3) == found


def test_each_category_is_compared_with_its_own_calibration():
    rng = np.random.default_rng(2)
    calm, moved = batch(rng, 30, 50), batch(rng, 400, 80, 0.8)
    p, ranks = (np.concatenate(pair) for pair in zip(calm, moved, strict=True))
    sizes, names = np.repeat([30, 400], [50, 80]), np.repeat(["a", "b"], [50, 80])
    both = measure_drift(p, p <= 0.05, ranks, sizes, names)
    alone = measure_drift(moved[0], moved[0] <= 0.05, moved[1], 400)
    assert both.significance == pytest.approx(2 * alone.significance)
    assert (both.statistic, both.appearance) == (alone.statistic, alone.appearance)


def test_light_is_a_test_of_its_own():
    """Of 50 pictures that are two thirds of a standard deviation darker, and of as many others."""
    rng = np.random.default_rng(0)
    known = np.sort(rng.normal(size=300))[:, None]
    p = rng.random(50)
    none = np.full((50, 1), np.nan)

    def drift(levels):
        ranks = calibration_ranks(known, levels[:, None])[:, 0]
        return measure_drift(p, p <= 0.01, none, 300, light=ranks)

    darker, same = drift(rng.normal(size=50) - 0.67), drift(rng.normal(size=50))
    assert darker.light < -0.2 < same.light
    assert darker.significance < 1e-3 < same.significance
    assert drift(rng.normal(size=50) + 0.67).light > 0.2
    assert measure_drift(p, p <= 0.01, none, 300).light == 0
