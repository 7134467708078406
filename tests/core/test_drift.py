import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.crossfit import HeldOut, assign_folds, crossfit
from dfm_mlflow.core.drift import (
    MOST_LEADING,
    leading_directions,
    measure_drift,
    n_leading,
    places_among,
)
from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.errors import FitError


def features(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)) * 3 @ rng.normal(size=(8, d)) + rng.normal(size=(n, d)) + 7


@pytest.mark.parametrize(("n", "d"), [(80, 200), (200, 30)])
def test_held_out_rows_lie_along_directions_that_they_have_no_part_in(n, d):
    x, folds = features(n, d), assign_folds(n, 10)
    model = fit_subspace(x, 0.9)
    found = crossfit(x, folds, 0.9).leading(model)
    assert found.shape == (n, n_leading(model))
    for fold in range(10):
        out = folds == fold
        directions = leading_directions(fit_subspace(x[~out], 0.9), model)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
        np.testing.assert_allclose(found[out], (x[out] - model.mean) @ directions, atol=1e-8)


def test_they_are_near_those_of_the_model_where_directions_are_certain():
    x = features(400, 60)
    model = fit_subspace(x, 3)
    found = crossfit(x, assign_folds(400), 3).leading(model)
    for j in range(3):
        assert np.corrcoef(found[:, j], model.split(x)[0][:, j])[0, 1] > 0.99


def test_they_spread_nearly_as_new_ones_even_where_directions_are_chance():
    x = np.random.default_rng(1).normal(size=(900, 150))
    train, new = x[:100], x[100:]
    model = fit_subspace(train, 0.97)
    held_out = crossfit(train, assign_folds(100), 0.97).leading(model)
    fresh, fitted = (model.split(part)[0][:, : held_out.shape[1]] for part in (new, train))
    assert held_out.std() < 1.35 * fresh.std()
    assert fitted.std() > 1.8 * fresh.std()


def test_without_cross_fitting_there_are_none():
    held_out = HeldOut(np.ones(3), np.ones(3), lambda: np.ones((3, 2)))
    with pytest.raises(FitError, match="not kept"):
        held_out.leading(fit_subspace(features(10, 4), 2))


def test_places_are_p_values_and_pad():
    known = np.sort(np.random.default_rng(0).normal(size=(19, 2)), axis=0)
    values = np.array([[0.3, -9.0], [9.0, 0.1]])
    places = places_among(known, values)
    assert places.shape == (2, MOST_LEADING)
    for j in range(2):
        expected = Calibration.of(known[:, j]).p_value(values[:, j])
        assert places[:, j].tolist() == expected.tolist()
    assert np.isnan(places[:, 2:]).all()


def batch(rng, n, m, shift=0.0, columns=3, known=None):
    """P-values and places of m pictures among n of the same distribution, or shifted."""
    known = rng.normal(size=(n, columns + 1)) if known is None else known
    new = rng.normal(size=(m, columns + 1)) + shift
    ranks = (1 + (known[None] >= new[:, None]).sum(axis=1)) / (n + 1)
    return ranks[:, 0], ranks[:, 1:]


def test_place_is_tested_as_wilcoxon_mann_whitney():
    rng = np.random.default_rng(3)
    known, new = rng.normal(size=40), rng.normal(size=70) + 0.5
    places = (1 + (known >= new[:, None]).sum(axis=1)) / 41
    # p-values that are all 1 are no evidence, so the least likely is the coordinate
    drift = measure_drift(np.ones(70), np.zeros(70, bool), places[:, None], 40)
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


def _draws(rng, n, m):
    for _ in range(400):
        p, places = batch(rng, n, m)
        yield p, p <= 0.05, places


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
    p, places = (np.concatenate(pair) for pair in zip(calm, moved, strict=True))
    sizes, names = np.repeat([30, 400], [50, 80]), np.repeat(["a", "b"], [50, 80])
    both = measure_drift(p, p <= 0.05, places, sizes, names)
    alone = measure_drift(moved[0], moved[0] <= 0.05, moved[1], 400)
    assert both.significance == pytest.approx(2 * alone.significance)
    assert (both.statistic, both.appearance) == (alone.statistic, alone.appearance)
