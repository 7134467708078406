import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.core.subspace import fixed_signs

from .test_dfm import low_rank


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
    nll = model.subspace_nll_from((z**2 / model.variances).sum(axis=1))
    np.testing.assert_allclose(nll, -gaussian.logpdf(z), rtol=1e-8)


def test_rows_near_the_span_keep_their_digits():
    s = fit_subspace(low_rank(30, 80), 0.9)
    rng = np.random.default_rng(1)
    away = rng.normal(size=(5, 80))
    away -= away @ s.basis @ s.basis.T
    away *= 1e-6 / np.linalg.norm(away, axis=1, keepdims=True)
    rows = s.mean + rng.normal(size=(5, s.n_components)) * 30 @ s.basis.T + away
    np.testing.assert_allclose(s.fre(rows), 1e-12, rtol=1e-5)


def test_constant_features_are_normal():
    x = low_rank(30, 20)
    x[:, 3] = 0  # a dead ReLU
    s = fit_subspace(x, 0.9)
    assert np.abs(s.residual(x)[:, 3]).max() < 1e-12


@pytest.mark.parametrize("level", [3, 12])
def test_coordinates_and_residual_put_rows_together_again(level):
    x, new = low_rank(100, 12), low_rank(9, 12, seed=1)
    s = fit_subspace(x, level)
    z, e = s.split(new)
    np.testing.assert_allclose(s.mean + z @ s.basis.T + e, new, atol=1e-9)
    np.testing.assert_allclose(e @ s.basis, 0, atol=1e-9)
    centred = ((new - s.mean) ** 2).sum(1)
    np.testing.assert_allclose((z**2).sum(1) + s.fre(new), centred, rtol=1e-9)
    if level == 12:  # nothing is outside, and rounding is not taken for it
        assert not e.any()


def test_scores_do_not_depend_on_where_and_how_the_features_are_turned():
    rng = np.random.default_rng(2)
    x, new = low_rank(100, 20), low_rank(9, 20, seed=1)
    turn, shift = np.linalg.qr(rng.normal(size=(20, 20)))[0], rng.normal(size=20) * 10
    one, other = fit_subspace(x, 5), fit_subspace(x @ turn + shift, 5)
    moved = new @ turn + shift
    np.testing.assert_allclose(other.fre(moved), one.fre(new), rtol=1e-8)
    np.testing.assert_allclose(other.nll(moved), one.nll(new), rtol=1e-8)


def test_a_scale_moves_the_likelihood_by_its_logarithm():
    x, new = low_rank(100, 20), low_rank(9, 20, seed=1)
    one, other = fit_subspace(x, 5), fit_subspace(7 * x, 5)
    np.testing.assert_allclose(other.fre(7 * new), 49 * one.fre(new), rtol=1e-8)
    np.testing.assert_allclose(other.nll(7 * new) - one.nll(new), 20 * np.log(7), rtol=1e-8)


def test_no_kept_direction_varies_less_than_the_noise():
    s = fit_subspace(low_rank(100, 20), 5)
    loud = s.with_noise(float(s.variances[1]))
    floored = np.maximum(s.variances, s.variances[1])
    z = np.random.default_rng(0).normal(size=(4, 5))
    np.testing.assert_allclose(loud.mahalanobis(z), (z**2 / floored).sum(1))
    assert s.noise_variance < s.variances[-1]  # the one it was made of is what it was


def test_torch_gives_the_same_and_a_copy_shares_nothing():
    x, new = low_rank(100, 20), low_rank(9, 20, seed=1)
    s = fit_subspace(x, 5)
    copy = s.like(torch.zeros((), dtype=torch.float64))
    for name in ("fre", "nll", "residual"):
        found = getattr(copy, name)(torch.from_numpy(new))
        np.testing.assert_allclose(found.numpy(), getattr(s, name)(new), rtol=1e-9, atol=1e-12)
    copy.mean.add_(1)
    np.testing.assert_allclose(s.mean, x.mean(0))


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6))
def test_signs_are_fixed_by_the_largest_entry(n, k, seed):
    basis = np.random.default_rng(seed).integers(-3, 4, (n, k)).astype(float)
    signs = np.random.default_rng(seed + 1).choice([-1.0, 1.0], k)
    found = fixed_signs(basis.copy())
    np.testing.assert_array_equal(fixed_signs(basis * signs), found)
    np.testing.assert_array_equal(np.abs(found), np.abs(basis))
    largest = found[np.abs(found).argmax(axis=0), np.arange(k)]
    assert (largest >= 0).all()
