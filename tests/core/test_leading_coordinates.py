import numpy as np
import pytest
from scipy.stats import spearmanr

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.crossfit import HeldOut, assign_folds, crossfit
from dfm_mlflow.core.leading_coordinates import (
    MOST_LEADING,
    calibration_ranks,
    leading_directions,
    n_leading,
    rank_correlation,
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
    found = crossfit(x, folds, 0.9).leading_coordinates(model)
    assert found.shape == (n, n_leading(model))
    for fold in range(10):
        out = folds == fold
        directions = leading_directions(fit_subspace(x[~out], 0.9), model)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
        np.testing.assert_allclose(found[out], (x[out] - model.mean) @ directions, atol=1e-8)


def test_they_are_near_those_of_the_model_where_directions_are_certain():
    x = features(400, 60)
    model = fit_subspace(x, 3)
    found = crossfit(x, assign_folds(400), 3).leading_coordinates(model)
    for j in range(3):
        assert np.corrcoef(found[:, j], model.split(x)[0][:, j])[0, 1] > 0.99


def test_they_spread_nearly_as_new_ones_even_where_directions_are_chance():
    x = np.random.default_rng(1).normal(size=(900, 150))
    train, new = x[:100], x[100:]
    model = fit_subspace(train, 0.97)
    held_out = crossfit(train, assign_folds(100), 0.97).leading_coordinates(model)
    fresh, fitted = (model.split(part)[0][:, : held_out.shape[1]] for part in (new, train))
    assert held_out.std() < 1.35 * fresh.std()
    assert fitted.std() > 1.8 * fresh.std()


def test_without_cross_fitting_there_are_none():
    held_out = HeldOut(np.ones(3), np.ones(3), lambda: np.ones((3, 2)))
    with pytest.raises(FitError, match="not kept"):
        held_out.leading_coordinates(fit_subspace(features(10, 4), 2))


def test_calibration_ranks_are_mid_ranks_and_pad():
    known = np.sort(np.random.default_rng(0).normal(size=(19, 2)), axis=0)
    values = np.array([[0.3, -9.0], [9.0, 0.1]])
    ranks = calibration_ranks(known, values)
    assert ranks.shape == (2, MOST_LEADING)
    for j in range(2):
        expected = Calibration.of(known[:, j]).p_value(values[:, j]) - 0.5 / 20
        np.testing.assert_allclose(ranks[:, j], expected)
    assert np.isnan(ranks[:, 2:]).all()


def test_rank_correlation_is_spearmans_over_all_layers():
    rows = features(30, 5)
    found = rank_correlation([rows[:, :2], rows[:, 2:]])
    np.testing.assert_allclose(found, spearmanr(rows).statistic, atol=1e-12)
    assert rank_correlation([rows[:, :1]]).tolist() == [[1]]
