import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from dfm_mlflow.core.subspace import count_components, fit_subspace
from dfm_mlflow.errors import FitError


def low_rank(n, d, rank=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) * 3 + rng.normal(size=(n, d)) + 5


@pytest.mark.parametrize(("n", "d"), [(40, 150), (150, 40), (60, 60)])
def test_agrees_with_scikit_learn(n, d):
    x = low_rank(n, d)
    ours, theirs = fit_subspace(x, 0.9), PCA(n_components=0.9, svd_solver="full").fit(x)
    assert ours.n_components == theirs.n_components_
    projector = theirs.components_.T @ theirs.components_
    np.testing.assert_allclose(ours.basis @ ours.basis.T, projector, atol=1e-10)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-10)
    scale = ((x - x.mean(0)) ** 2).sum(1)
    fre = ((x - theirs.inverse_transform(theirs.transform(x))) ** 2).sum(1)
    assert (np.abs(ours.fre(x) - fre) / scale).max() < 1e-10


def test_likelihood_agrees_with_scikit_learn_where_its_noise_is_right():
    x = low_rank(200, 30)
    theirs = PCA(n_components=0.9, svd_solver="full").fit(x)
    np.testing.assert_allclose(fit_subspace(x, 0.9).nll(x), -theirs.score_samples(x), rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_subspace_holds_its_promises(n, d, seed, level):
    x = np.random.default_rng(seed).normal(size=(n, d))
    before = x.copy()
    s = fit_subspace(x, level)
    assert np.array_equal(x, before)
    assert 1 <= s.n_components <= min(n - 1, d)
    np.testing.assert_allclose(s.basis.T @ s.basis, np.eye(s.n_components), atol=1e-8)
    total = x.var(axis=0, ddof=1).sum()
    assert s.variances.sum() >= level * total * (1 - 1e-9)
    assert s.variances[:-1].sum() < level * total or s.n_components == 1
    assert (s.fre(x) >= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1e6, 1e6))
def test_shift_and_row_order_change_nothing(seed, shift):
    x = low_rank(20, 50, seed=seed)
    order = np.random.default_rng(seed).permutation(20)
    reference = fit_subspace(x, 0.9).fre(x)
    np.testing.assert_allclose(fit_subspace(x[order], 0.9).fre(x), reference, rtol=1e-8)
    # a shift of 1e6 costs its six digits of float64
    np.testing.assert_allclose(fit_subspace(x + shift, 0.9).fre(x + shift), reference, rtol=1e-5)


def test_rows_in_the_span_have_no_residual():
    s = fit_subspace(low_rank(30, 80), 0.9)
    inside = s.mean + np.random.default_rng(1).normal(size=(5, s.n_components)) @ s.basis.T
    assert s.fre(inside).max() < 1e-20 * ((inside - s.mean) ** 2).sum(1).max() * 1e6


def test_torch_gives_the_same_numbers():
    x = low_rank(30, 80)
    s = fit_subspace(x, 0.9)
    tensors = [torch.tensor(a.copy()) for a in (s.mean, s.basis, s.variances)]
    t = type(s)(*tensors, s.noise_variance, s.n_samples)
    np.testing.assert_allclose(t.fre(torch.tensor(x)).numpy(), s.fre(x), rtol=1e-10)
    np.testing.assert_allclose(t.nll(torch.tensor(x)).numpy(), s.nll(x), rtol=1e-10)


def test_count_is_the_smallest_that_reaches_the_level():
    variances = np.array([4.0, 3.0, 2.0, 1.0])
    assert [count_components(variances, q) for q in (0.01, 0.4, 0.41, 0.7, 0.9, 1.0)] == [
        1, 1, 2, 2, 3, 4]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 4)), "at least 2"),
        (np.ones((5, 4)), "equal"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "NaN"),
    ],
)
def test_unusable_features_are_refused(x, words):
    with pytest.raises(FitError, match=words):
        fit_subspace(x, 0.9)


def test_constant_features_are_normal():
    x = low_rank(30, 20)
    x[:, 3] = 0
    s = fit_subspace(x, 0.9)
    assert np.abs(s.residual(x)[:, 3]).max() < 1e-12
