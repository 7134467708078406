import numpy as np
import pytest

from dfm_mlflow.core.gram_rows import RowsByGram
from dfm_mlflow.core.solvers import fit_subspace


@pytest.mark.parametrize("level", [0.9, 5])
def test_projections_by_inner_products_alone_are_those_of_the_subspace(level):
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(30, 80)) + 3, rng.normal(size=(7, 80)) + 3
    rows, model = RowsByGram(x @ x.T, 80), fit_subspace(x, level)
    weights, mahalanobis = rows.project(others @ x.T, level)
    z, residual = model.split(others)
    assert rows.n_components(level) == model.n_components
    np.testing.assert_allclose(others - weights @ x, residual, atol=1e-10)
    variances = np.maximum(model.variances, model.noise_variance)
    np.testing.assert_allclose(mahalanobis, (z**2 / variances).sum(axis=1))


def test_equal_rows_are_a_point():
    rows = RowsByGram(np.full((3, 3), 4.0), 4)
    assert rows.n_components(0.97) == 0
    np.testing.assert_allclose(rows.project(np.zeros((1, 3)), 0.97)[0] @ np.ones((3, 4)), 1)
