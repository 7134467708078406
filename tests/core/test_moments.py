import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.crossfit import fit_without
from dfm_mlflow.core.moments import MAX_FEATURES, Moments, moments_of
from dfm_mlflow.core.solvers import fit_moments
from dfm_mlflow.errors import FitError

from ..conftest import examples

CUTS = st.lists(st.integers(0, 60), max_size=6)


def rows(seed, n=60, d=7):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.uniform(-1e3, 1e3)


def assert_same(a, b, scale=None):
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-10)
    size = np.sqrt(np.outer(*2 * [np.diag((scale or b).scatter)]))
    assert (np.abs(a.scatter - b.scatter) <= 1e-10 * size).all()


@examples(60)
@given(st.integers(0, 10**6), CUTS)
def test_any_partition_gives_the_moments_of_the_whole(seed, cuts):
    x = rows(seed)
    whole = Moments.of(x)
    np.testing.assert_allclose(whole.scatter, np.cov(x.T) * 59, rtol=1e-9, atol=1e-9)
    parts = np.split(x, sorted(cuts))  # empty parts included
    assert_same(moments_of(parts), whole)
    assert_same(moments_of(parts[::-1]), whole)


@examples(30)
@given(st.integers(0, 10**6))
def test_merge_is_associative_and_commutative(seed):
    a, b, c = (Moments.of(rows(seed + i, 10 + i)) for i in range(3))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(b).without(b), a, scale=a.merge(b))
    assert_same(a.update(rows(seed, 5)), a.merge(Moments.of(rows(seed, 5))))


def test_a_huge_row_costs_other_rows_nothing_until_it_is_taken_away():
    x = rows(0)
    huge = np.full((1, 7), 1e12)
    with_it = moments_of([x[:20], huge, x[20:]])
    direct = Moments.of(np.concatenate([x, huge]))
    assert_same(with_it, direct)
    left, exact = with_it.without(Moments.of(huge)), Moments.of(x)
    assert left.is_rounding_of(with_it)
    assert not exact.merge(Moments.of(x[:5])).without(Moments.of(x[:5])).is_rounding_of(exact)
    # what the sums have lost does not come back, and is not taken for moments
    subspace = fit_without(with_it, Moments.of(huge), 0.9, lambda: exact)
    np.testing.assert_array_equal(subspace.variances, fit_moments(exact, 0.9).variances)


def test_what_does_not_go_together():
    with pytest.raises(FitError, match="7 and of 5 features do not merge"):
        Moments.of(rows(0)).merge(Moments.of(rows(0, d=5)))
    with pytest.raises(FitError, match="4096 features are the limit"):
        Moments.of(np.zeros((1, MAX_FEATURES + 1), np.float32))
    with pytest.raises(FitError, match="none is left"):
        Moments.of(rows(0)).without(Moments.of(rows(0)))
