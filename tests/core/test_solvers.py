import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.solvers import choose_k, fit_moments, fit_subspace
from dfm_mlflow.core.streaming import TooManyComponents, fit_stream
from dfm_mlflow.errors import FitError

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


@pytest.mark.parametrize("level", [0.9, 12])
def test_likelihood_is_that_of_the_full_gaussian(level):
    x = low_rank(200, 12)
    ours, theirs = fit_subspace(x, level), PCA(n_components=level, svd_solver="full").fit(x)
    if level < 12:
        np.testing.assert_allclose(ours.nll(x), -theirs.score_samples(x), rtol=1e-8)
    gaussian = multivariate_normal(theirs.mean_, theirs.get_covariance())
    np.testing.assert_allclose(ours.nll(x), -gaussian.logpdf(x), rtol=1e-8)


def test_likelihood_of_the_subspace_is_that_of_its_coordinates():
    x = low_rank(100, 30)
    model = fit_subspace(x, 4)
    z = (x - x.mean(0)) @ model.basis
    gaussian = multivariate_normal(np.zeros(4), np.cov(z.T))
    np.testing.assert_allclose(model.subspace_nll(x), -gaussian.logpdf(z), rtol=1e-8)


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(1, 30), st.integers(1, 5), st.integers(0, 10**6))
def test_rows_of_low_rank_are_reconstructed(n, d, rank, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) + rng.normal(size=d)
    s = fit_subspace(x, 1.0)
    assert s.n_components <= min(rank, n - 1, d)
    scale = ((x - s.mean) ** 2).sum(axis=1).max()
    assert s.fre(x).max() <= 1e-20 * scale * 100
    assert np.isfinite(s.nll(x)).all()


def test_rows_near_the_span_keep_their_digits():
    s = fit_subspace(low_rank(30, 80), 0.9)
    rng = np.random.default_rng(1)
    away = rng.normal(size=(5, 80))
    away -= away @ s.basis @ s.basis.T
    away *= 1e-6 / np.linalg.norm(away, axis=1, keepdims=True)
    rows = s.mean + rng.normal(size=(5, s.n_components)) * 30 @ s.basis.T + away
    np.testing.assert_allclose(s.fre(rows), 1e-12, rtol=1e-5)


def test_moments_and_rows_give_the_same_fit():
    x = low_rank(200, 40)
    a, b = fit_subspace(x, 0.9), fit_moments(Moments.of(x), 0.9)
    np.testing.assert_allclose(a.fre(x), b.fre(x), rtol=1e-10)
    assert a.noise_variance == pytest.approx(b.noise_variance, rel=1e-10)


@pytest.mark.parametrize("cuts", [1, 3, 40])
def test_streaming_does_not_depend_on_the_batches(cuts):
    x = low_rank(400, 300, rank=20)
    parts = np.array_split(x, cuts)
    s, exact = fit_stream(lambda: parts, 0.9), fit_subspace(x, 0.9)
    whole = fit_stream(lambda: [x], 0.9)
    assert s.n_components == exact.n_components
    np.testing.assert_allclose(s.fre(x), exact.fre(x), rtol=1e-4)
    np.testing.assert_allclose(s.nll(x), exact.nll(x), rtol=1e-4)
    np.testing.assert_allclose(s.fre(x), whole.fre(x), rtol=1e-8)


def test_streaming_of_too_few_or_too_flat_rows():
    with pytest.raises(FitError, match="no rows"):
        fit_stream(lambda: [])
    with pytest.raises(FitError, match="1 sample"):
        fit_stream(lambda: [np.ones((1, 5))])
    with pytest.raises(FitError, match="equal"):
        fit_stream(lambda: [np.ones((3, 5))])
    flat = np.random.default_rng(0).normal(size=(400, 400))
    with pytest.raises(TooManyComponents, match="more than half"):
        fit_stream(lambda: [flat], 0.99)
    # in memory the exact solver takes over
    assert fit_subspace(flat, 0.99, solver="randomized").n_components > 200


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
    ],
)
def test_unusable_features_are_refused(x, words):
    with pytest.raises(FitError, match=words):
        fit_subspace(x, 0.9)


def test_constant_features_are_normal():
    x = low_rank(30, 20)
    x[:, 3] = 0  # a dead ReLU
    s = fit_subspace(x, 0.9)
    assert np.abs(s.residual(x)[:, 3]).max() < 1e-12


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
