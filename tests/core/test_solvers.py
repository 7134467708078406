import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.solvers import (
    bulk_mean,
    choose_k,
    fit_moments,
    fit_subspace,
    inner_products,
)
from dfm_mlflow.errors import FitError

from ..conftest import examples
from .test_dfm import low_rank


@pytest.mark.parametrize("solver", ["gram", "covariance", "randomized"])
@pytest.mark.parametrize(("n", "d"), [(60, 300), (300, 60), (130, 130)])
@pytest.mark.parametrize("level", [0.6, 5])
def test_solvers_agree_with_scikit_learn(solver, n, d, level):
    x = low_rank(n, d)
    ours = fit_subspace(x, level, solver=solver)
    theirs = PCA(n_components=level, svd_solver="full").fit(x)
    assert ours.n_components == theirs.n_components_
    projector = theirs.components_.T @ theirs.components_
    tolerance = 1e-8 if solver != "randomized" else 1e-5
    np.testing.assert_allclose(ours.basis @ ours.basis.T, projector, atol=tolerance)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-8)
    scale = ((x - x.mean(0)) ** 2).sum(1)
    fre = ((x - theirs.inverse_transform(theirs.transform(x))) ** 2).sum(1)
    assert (np.abs(ours.fre(x) - fre) / scale).max() < tolerance


@examples(60)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_the_subspace_is_the_smallest_that_reaches_the_level(n, d, seed, level):
    x = np.random.default_rng(seed).normal(size=(n, d))
    before = x.copy()
    s = fit_subspace(x, level)
    assert np.array_equal(x, before)
    assert 1 <= s.n_components <= min(n - 1, d)
    np.testing.assert_allclose(s.basis.T @ s.basis, np.eye(s.n_components), atol=1e-9)
    total = x.var(axis=0, ddof=1).sum()
    assert s.variances.sum() >= level * total * (1 - 1e-9)
    assert s.variances[:-1].sum() < level * total or s.n_components == 1
    assert (s.fre(x) >= 0).all()
    largest = s.basis[np.abs(s.basis).argmax(axis=0), np.arange(s.n_components)]
    assert (largest > 0).all()


@examples(30)
@given(st.integers(2, 20), st.integers(1, 30), st.integers(1, 5), st.integers(0, 10**6))
def test_rows_of_low_rank_are_reconstructed(n, d, rank, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) + rng.normal(size=d)
    s = fit_subspace(x, 1.0)
    assert s.n_components <= min(rank, n - 1, d)
    scale = ((x - s.mean) ** 2).sum(axis=1).max()
    assert s.fre(x).max() <= 1e-20 * scale * 100
    assert np.isfinite(s.nll(x)).all()


def test_moments_and_rows_give_the_same_fit():
    x = low_rank(200, 40)
    a, b = fit_subspace(x, 0.9), fit_moments(Moments.of(x), 0.9)
    np.testing.assert_allclose(a.fre(x), b.fre(x), rtol=1e-10)
    assert a.noise_variance == pytest.approx(b.noise_variance, rel=1e-10)


def test_two_rows_and_one_row():
    s = fit_subspace(np.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(s.basis[:, 0], [0.6, 0.8])
    with pytest.raises(FitError, match="There is 1 sample .* at least 2"):
        fit_subspace(np.ones((1, 4)))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((5, 4)), "equal"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "NaN"),
        (np.array([[np.inf, -np.inf], [1.0, 2.0]]), "infinite"),
        (np.array([[1e200, 0.0], [1.0, 2.0]]), "squares overflow"),
        (np.array([[1e200, 0.0], [1.0, 2.0], [3.0, 1.0]]), "squares overflow"),
    ],
)
def test_unusable_features_are_refused(x, words):
    with pytest.raises(FitError, match=words):
        fit_subspace(x, 0.9)


def test_count_is_the_smallest_that_reaches_the_level():
    spectrum = np.array([4.0, 3.0, 2.0, 1.0])
    assert [choose_k(spectrum, q, 4) for q in (0.01, 0.4, 0.41, 0.7, 0.9, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]
    assert choose_k(spectrum, 3, 4) == 3
    assert choose_k(spectrum, 9, 4, strict=False) == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inner_products_are_those_of_float64(dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 3000)).astype(dtype) * 1e3 for n in (5, 8))
    wide = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(inner_products(a, b), wide[0] @ wide[1].T, rtol=1e-9, atol=1e-3)
    np.testing.assert_allclose(inner_products(a, a), wide[0] @ wide[0].T, rtol=1e-9, atol=1e-3)


def test_no_huge_row_moves_the_centre():
    x = low_rank(40, 9)
    spread = x.std(axis=0).max()
    for factors in ([1e12], [1e12, 1e8, -1e8]):
        huge = np.concatenate([x, np.outer(factors, np.ones(9))])
        assert np.abs(bulk_mean(huge) - x.mean(axis=0)).max() < 2 * spread
