from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.core.streaming import (
    SubspaceIteration,
    Summary,
    TooManyComponents,
    contribution,
    fit_stream,
)
from dfm_mlflow.errors import FitError

from .test_dfm import low_rank


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


@pytest.mark.parametrize("dimension", [131, 150, 255])
def test_a_block_that_has_not_settled_is_no_verdict(dimension):
    """The first block, of random directions, holds less than half of ten that it later holds."""
    x = low_rank(600, dimension, rank=10)
    streamed, exact = fit_stream(lambda: [x], 0.97), fit_subspace(x, 0.97)
    assert streamed.n_components == exact.n_components <= 10
    np.testing.assert_allclose(streamed.variances, exact.variances, rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 6), st.lists(st.integers(0, 40), max_size=5))
def test_summaries_of_parts_merge_to_that_of_the_whole(n, d, cuts):
    x = np.random.default_rng(n * 7 + d).normal(size=(n, d)) * 3 + 100
    parts = [p for p in np.split(x, sorted(min(c, n) for c in cuts)) if len(p)]
    for order in (parts, parts[::-1]):
        found = reduce(Summary.merge, map(Summary.of, order))
        assert found.n == n
        np.testing.assert_allclose(found.mean, x.mean(0))
        np.testing.assert_allclose(found.total, ((x - x.mean(0)) ** 2).sum(), atol=1e-8)


def test_contributions_add_up_to_the_scatter_matrix_times_the_block():
    x, block = low_rank(60, 30), np.random.default_rng(0).normal(size=(30, 4))
    mean = x.mean(0)
    shares = [contribution(part, mean, block) for part in np.array_split(x, 7)]
    scatter = (x - mean).T @ (x - mean)
    np.testing.assert_allclose(sum(shares), scatter @ block, rtol=1e-9)


def test_a_number_of_directions_is_what_principal_components_are():
    x = low_rank(300, 120, rank=12)
    s = fit_stream(lambda: np.array_split(x, 5), 12)
    pca = PCA(n_components=12, svd_solver="full").fit(x)
    projector = pca.components_.T @ pca.components_
    np.testing.assert_allclose(s.basis @ s.basis.T, projector, atol=1e-4)
    np.testing.assert_allclose(s.variances, pca.explained_variance_, rtol=1e-6)
    assert s.noise_variance == pytest.approx(pca.noise_variance_, rel=1e-4)


@pytest.mark.parametrize("dominance", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("k", [5, 12])
def test_it_settles_however_little_of_the_variance_is_not_kept(dominance, k):
    """FRE is made of that rest; a change that is small beside the whole says nothing of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 300)) * np.linspace(3, 0.5, 300)
    direction = rng.normal(size=300)
    x += dominance * rng.normal(size=(400, 1)) * (direction / np.linalg.norm(direction))
    exact = fit_subspace(x, k, solver="covariance").fre(x)
    np.testing.assert_allclose(fit_stream(lambda: [x], k).fre(x), exact, rtol=5e-5)


def test_rows_that_are_kept_whole_settle_soon():
    """Where no variance is left out there is nothing to be relative to."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 10)) @ rng.normal(size=(10, 400))
    iteration = SubspaceIteration(Summary.of(x), 10)
    while not iteration.advance(contribution(x, iteration.summary.mean, iteration.block)):
        assert iteration.n_passes < 20
    scale = ((x - x.mean(0)) ** 2).sum(axis=1)
    assert (iteration.subspace().fre(x) / scale).max() < 1e-20


def test_the_first_block_changes_nothing_but_rounding():
    x = low_rank(400, 300, rank=10)
    one, other = (fit_stream(lambda: [x], 0.9, seed=seed) for seed in (0, 1))
    assert one.n_components == other.n_components
    np.testing.assert_allclose(one.fre(x), other.fre(x), rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "n_components", "words"),
    [
        (np.eye(3), 3, "vary in at most 2 directions"),
        (np.eye(3), 1.5, "out of range"),
        (np.full((3, 2), np.nan), 0.9, "NaN or infinite"),
        (1e200 * np.eye(3), 0.9, "squares overflow"),
    ],
)
def test_what_the_rows_do_not_have_is_refused(rows, n_components, words):
    with pytest.raises(FitError, match=words):
        fit_stream(lambda: [rows], n_components)
