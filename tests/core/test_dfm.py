import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.core.moments import Moments, moments_of
from dfm_mlflow.errors import FitError

from ..conftest import examples


def low_rank(n, d, rank=6, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    structure = rng.normal(size=(rank, d)) * scale
    return rng.normal(size=(n, rank)) @ structure + rng.normal(size=(n, d)) + 5


@parametrize_with_checks([DFM(), DFM(n_components=1, score_type="fre")])
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def test_one_class_is_pca():
    x, new = low_rank(200, 30), low_rank(20, 30, seed=1)
    dfm = DFM(0.9, noise="in-sample").fit(x)
    pca = PCA(n_components=0.9, svd_solver="full").fit(x)
    np.testing.assert_allclose(dfm.score_samples(new), pca.score_samples(new), rtol=1e-9)
    back = pca.inverse_transform(pca.transform(new))
    scale = ((new - pca.mean_) ** 2).sum(1)
    assert (np.abs(dfm.fre(new) - ((new - back) ** 2).sum(1)) / scale).max() < 1e-12
    assert dfm.classes_.tolist() == [0]
    assert set(dfm.predict_class(new)) == {0}


def three_classes(n=60, d=40, seed=0):
    rng = np.random.default_rng(seed)
    x = np.concatenate(
        [low_rank(n, d, 3, seed=seed + i) + 40 * rng.normal(size=d) for i in (1, 2, 3)]
    )
    return x, np.repeat(["bolt", "nut", "washer"], n)


def test_each_class_has_its_own_subspace_and_the_best_wins():
    x, y = three_classes()
    dfm = DFM(0.9).fit(x, y)
    assert dfm.classes_.tolist() == ["bolt", "nut", "washer"]
    assert (dfm.predict_class(x) == y).all()
    fre, nll = dfm.class_scores(x)
    assert fre.shape == nll.shape == (180, 3)
    np.testing.assert_array_equal(dfm.nll(x), nll.min(axis=1))
    np.testing.assert_array_equal(dfm.fre(x), fre[np.arange(180), nll.argmin(axis=1)])
    alone = DFM(0.9).fit(x[y == "nut"])
    np.testing.assert_allclose(dfm.fre(x[y == "nut"]), alone.fre(x[y == "nut"]), rtol=1e-9)


def test_a_class_of_two_works_and_one_of_one_is_named():
    x, y = three_classes()
    keep = np.r_[0:60, 60:62, 120:180]
    assert DFM().fit(x[keep], y[keep]).subspaces_[1].n_components == 1
    keep = np.r_[0:60, 60:61, 120:180]
    with pytest.raises(FitError, match="class nut cannot be fitted. There is 1 sample"):
        DFM().fit(x[keep], y[keep])


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30)])
def test_what_is_fitted_depends_neither_on_order_nor_on_batches(n, d):
    x, new = low_rank(n, d), low_rank(10, d, seed=1)
    order = np.random.default_rng(0).permutation(n)
    dfm, shuffled = DFM(0.9).fit(x), DFM(0.9).fit(x[order])
    assert shuffled.offset_ == pytest.approx(dfm.offset_, rel=1e-9)
    scale = ((new - x.mean(0)) ** 2).sum(1)
    assert (np.abs(dfm.fre(new) - shuffled.fre(new)) / scale).max() < 1e-10
    np.testing.assert_allclose(shuffled.nll(new), dfm.nll(new), rtol=1e-10)
    alone = np.concatenate([dfm.score_samples(row[None]) for row in new])
    np.testing.assert_allclose(dfm.score_samples(new), alone, rtol=1e-10)


def test_inputs_stay_as_they_are_and_float32_loses_nothing_that_matters():
    x = low_rank(40, 90).astype(np.float32)
    before = x.copy()
    dfm = DFM().fit(x)
    single = dfm.fre(x)
    assert np.array_equal(x, before)
    exact = DFM().fit(x.astype(np.float64)).fre(x.astype(np.float64))
    np.testing.assert_allclose(single, exact, rtol=1e-6)


@examples(25)
@given(st.integers(0, 10**6), st.floats(-1e6, 1e6))
def test_a_constant_shift_costs_its_digits_and_no_more(seed, shift):
    x, new = low_rank(25, 40, seed=seed), low_rank(5, 40, seed=seed + 1)
    parameters = {"n_components": 0.9, "noise": "in-sample"}
    reference = DFM(**parameters).fit(x).nll(new)
    # at 1e6 a float64 keeps 1e-10 of each value
    np.testing.assert_allclose(
        DFM(**parameters).fit(x + shift).nll(new + shift), reference, rtol=1e-6
    )


def test_partial_fit_and_moments_are_fit():
    x, y = three_classes()
    new = three_classes(seed=9)[0]
    whole = DFM(0.9, noise="gcv").fit(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    streamed = DFM(0.9)
    for part in np.array_split(order, 11):
        streamed.partial_fit(x[part], y[part])
    moments = {c: Moments.of(x[y == c]) for c in np.unique(y)}
    for other in (streamed, DFM.from_moments(moments, n_components=0.9)):
        assert (other.classes_ == whole.classes_).all()
        np.testing.assert_allclose(other.nll(new), whole.nll(new), rtol=1e-9)
        np.testing.assert_allclose(other.fre(new), whole.fre(new), rtol=1e-9)


def test_partial_fit_after_fit_says_that_it_starts_afresh():
    x = low_rank(40, 10)
    with pytest.warns(UserWarning, match="starts afresh"):
        dfm = DFM(noise="in-sample").fit(x[:20]).partial_fit(x[20:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = DFM(noise="in-sample").partial_fit(x[20:])
    np.testing.assert_allclose(dfm.nll(x), again.nll(x))


def test_parameters_are_those_of_the_first_partial_fit():
    """Subspaces are computed late, and must not mix what was set before and after."""
    x, new = low_rank(200, 12), low_rank(20, 12, seed=1)
    dfm = DFM(0.5, contamination=0.1).partial_fit(x[:100])
    dfm.set_params(n_components=0.99, score_type="fre", contamination=0.5)
    with pytest.warns(UserWarning, match="n_components=0.5, score_type='nll' of the first"):
        dfm.partial_fit(x[100:])
    expected = DFM(0.5, contamination=0.1).partial_fit(x)
    assert dfm.subspaces_[0].n_components == expected.subspaces_[0].n_components
    np.testing.assert_allclose(dfm.decision_function(new), expected.decision_function(new))
    again = dfm.fit(x)
    assert again.offset_ == DFM(0.99, score_type="fre", contamination=0.5).fit(x).offset_


def test_parameters_that_are_set_after_a_fit_count_from_the_next_one():
    x, y = three_classes()
    dfm = DFM(0.9).fit(x, y)
    before = dfm.decision_function(x)
    dfm.set_params(score_type="fre", likelihood="subspace")
    np.testing.assert_array_equal(dfm.decision_function(x), before)
    np.testing.assert_array_equal(dfm.score_samples(x), -dfm.nll(x))


def test_equal_rows_are_held_out_together():
    """A copy of itself among the rows that are fitted makes any row look usual."""
    x, new = np.split(low_rank(40 + 300, 200, 0), [40])
    dfm = DFM(contamination=0.1).fit(np.tile(x, (5, 1)))
    assert (dfm.predict(new) == -1).mean() < 0.3


def test_batches_give_the_exact_fit_however_they_are_cut():
    x, y = three_classes(n=300, d=120)
    new = three_classes(seed=9, d=120)[0]
    exact = DFM(0.8, noise="gcv").fit(x, y)
    for cuts in (1, 7):
        parts = [(x[i], y[i]) for i in np.array_split(np.arange(len(x)), cuts)]
        other = DFM(0.8).fit_batches(lambda parts=parts: iter(parts))
        np.testing.assert_allclose(other.fre(new), exact.fre(new), rtol=1e-4)
        np.testing.assert_allclose(other.nll(new), exact.nll(new), rtol=1e-4)


def test_a_fit_that_fails_leaves_the_last_one_whole():
    x, y = three_classes()
    dfm = DFM().fit(x, y)
    before = dfm.nll(x)
    with pytest.raises(FitError, match="1 sample"):
        dfm.fit(x[:61], y[:61])
    assert len(dfm.classes_) == len(dfm.subspaces_) == 3
    np.testing.assert_array_equal(dfm.nll(x), before)
    fresh = DFM()
    with pytest.raises(FitError, match="1 sample"):
        fresh.fit(x[:61], y[:61])
    with pytest.raises(NotFittedError):
        fresh.predict(x)


def test_no_batches_are_no_rows():
    with pytest.raises(FitError, match="no rows"):
        DFM().fit_batches(lambda: [])
    with pytest.raises(FitError, match="no rows"):
        moments_of([])
