import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.core.moments import Moments, moments_of
from dfm_mlflow.errors import DfmError, FitError


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


def test_in_sample_share_of_outliers_is_the_contamination():
    x = low_rank(200, 30)
    for share in (0.01, 0.1, 0.5):
        dfm = DFM(contamination=share).fit(x)
        assert (dfm.predict(x) == -1).mean() == pytest.approx(share)
        np.testing.assert_allclose(dfm.decision_function(x), dfm.score_samples(x) - dfm.offset_)


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
    alone = DFM(0.9).fit(x[y == "nut"])
    np.testing.assert_allclose(dfm.fre(x[y == "nut"]), alone.fre(x[y == "nut"]), rtol=1e-9)


@pytest.mark.parametrize("score_type", ["nll", "fre"])
def test_classes_of_very_different_scale_are_comparable(score_type):
    """The coarse class's FRE drowns any defect of the fine one; a naive minimum misses them."""
    rng = np.random.default_rng(0)
    fine, coarse = rng.normal(size=(400, 20)) * 0.01, 100 + rng.normal(size=(400, 20)) * 10
    fine[:, :2] *= 100
    coarse[:, :2] *= 10
    dfm = DFM(2, score_type=score_type).fit(
        np.concatenate([fine[:200], coarse[:200]]), np.repeat([0, 1], 200)
    )
    defects = fine[200:] + 0.1 * rng.normal(size=(200, 20))
    good = np.concatenate([fine[200:], coarse[200:]])
    truth = np.repeat([0, 1], [400, 200])
    rows = np.concatenate([good, defects])
    naive = dfm.class_scores(rows)[0].min(axis=1)
    assert roc_auc_score(truth, naive) < 0.6
    assert roc_auc_score(truth, -dfm.score_samples(rows)) > 0.99


def test_a_hundred_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16)) * 20
    y = np.repeat(np.arange(100), 12)
    dfm = DFM(3).fit(centres[y] + rng.normal(size=(1200, 16)), y)
    new = centres[y] + rng.normal(size=(1200, 16))
    assert (dfm.predict_class(new) == y).mean() > 0.99


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
    parameters = {"n_components": 0.9, "noise": "in-sample"}
    dfm, shuffled = DFM(**parameters).fit(x), DFM(**parameters).fit(x[order])
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


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-1e6, 1e6))
def test_a_constant_shift_costs_its_digits_and_no_more(seed, shift):
    x, new = low_rank(25, 40, seed=seed), low_rank(5, 40, seed=seed + 1)
    parameters = {"n_components": 0.9, "noise": "in-sample"}
    reference = DFM(**parameters).fit(x).nll(new)
    # at 1e6 a float64 keeps 1e-10 of each value
    np.testing.assert_allclose(
        DFM(**parameters).fit(x + shift).nll(new + shift), reference, rtol=1e-6
    )


def test_torch_tensors_give_the_same_numbers():
    x, y = three_classes()
    dfm = DFM(0.9, score_type="fre").fit(x, y)
    t = torch.tensor(x)
    for name in ("fre", "nll", "score_samples", "decision_function", "predict"):
        ours = getattr(dfm, name)(t)
        assert isinstance(ours, torch.Tensor)
        np.testing.assert_allclose(ours.numpy(), getattr(dfm, name)(x), rtol=1e-9, atol=1e-9)
    assert (dfm.predict_class(t) == y).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_stay_on_their_device():
    x, y = three_classes()
    dfm = DFM(0.9).fit(x, y)
    scores = dfm.score_samples(torch.tensor(x, device="cuda"))
    assert scores.device.type == "cuda"
    np.testing.assert_allclose(scores.cpu().numpy(), dfm.score_samples(x), rtol=1e-9)


def test_partial_fit_and_moments_are_fit():
    x, y = three_classes()
    new = three_classes(seed=9)[0]
    whole = DFM(0.9).fit(x, y)
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


@pytest.mark.parametrize("score_type", ["nll", "fre"])
def test_offset_without_rows_is_the_quantile_of_the_density(score_type):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 30)) * np.r_[[9.0] * 4, [1.0] * 26]
    dfm = DFM(4, contamination=0.1, score_type=score_type, noise="in-sample").partial_fit(x)
    assert (dfm.predict(x) == -1).mean() == pytest.approx(0.1, abs=0.01)


def test_batches_give_the_exact_fit_however_they_are_cut():
    x, y = three_classes(n=300, d=120)
    new = three_classes(seed=9, d=120)[0]
    exact = DFM(0.8).fit(x, y)
    for cuts in (1, 7):
        parts = [(x[i], y[i]) for i in np.array_split(np.arange(len(x)), cuts)]
        other = DFM(0.8).fit_batches(lambda parts=parts: iter(parts))
        np.testing.assert_allclose(other.fre(new), exact.fre(new), rtol=1e-4)
        np.testing.assert_allclose(other.nll(new), exact.nll(new), rtol=1e-4)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_a_small_class_beside_a_large_one_keeps_its_rows(n):
    """All directions of few rows are kept; the noise that is left must not vanish with them."""
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=(300, 500)), 3 + rng.normal(size=(n + 40, 500))
    dfm = DFM().fit(np.concatenate([large, small[:n]]), np.repeat([0, 1], [300, n]))
    assert (dfm.predict_class(small[n:]) == 1).all()
    assert dfm.subspaces_[1].noise_variance == pytest.approx(1, abs=0.6)


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


@pytest.mark.parametrize(("n", "d"), [(60, 900), (300, 40)])
def test_corrected_noise_is_what_new_rows_show(n, d):
    x, new = np.split(low_rank(n + 500, d, rank=20), [n])
    seen = {}
    for noise in ("gcv", "held-out", "in-sample"):
        (model,) = DFM(0.9, noise=noise).fit(x).subspaces_
        true = model.fre(new).mean() / (d - model.n_components)
        seen[noise] = model.noise_variance / true
    assert seen["held-out"] == pytest.approx(1, abs=0.3)
    # not exact: the directions were chosen for their variance, noise included
    assert seen["gcv"] == pytest.approx(1, abs=0.4)
    assert n > d or seen["in-sample"] < 0.4
    with pytest.raises(FitError, match="needs all rows at once"):
        DFM(noise="held-out").partial_fit(x[:, :30])


def test_likelihood_of_the_full_space_is_worth_more_than_that_of_the_subspace():
    """Digits: fitted to some as classes, the others are out of distribution."""
    x, digit = load_digits(return_X_y=True)
    x = x + np.random.default_rng(0).normal(0, 1e-3, x.shape)
    known = np.isin(digit, [0, 1, 2, 3, 4, 5])
    train = known & (np.arange(len(x)) % 2 == 0)
    test, truth = x[~train], ~known[~train]
    area = {}
    for name, y in (("classes", digit[train]), ("single", None)):
        dfm = DFM(0.9).fit(x[train], y)
        area[name] = roc_auc_score(truth, dfm.nll(test))
        area[name, "fre"] = roc_auc_score(
            truth, -DFM(0.9, score_type="fre").fit(x[train], y).score_samples(test)
        )
        paper = DFM(0.9, likelihood="subspace").fit(x[train], y)
        area[name, "paper"] = roc_auc_score(truth, paper.nll(test))
    assert area["classes"] > area["single"]
    assert area["classes", "fre"] > area["single", "fre"]
    assert area["classes"] > area["classes", "fre"]
    assert area["classes"] > area["classes", "paper"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_components": 0.0}, "n_components=0.0 is out of range"),
        ({"n_components": 1.5}, "n_components=1.5 is out of range"),
        ({"n_components": 0}, "n_components=0 is out of range"),
        ({"n_components": True}, "out of range"),
        ({"n_components": 21}, "rows vary in 10 directions"),
        ({"score_type": "fft"}, "score_type='fft' is not known"),
        ({"contamination": 0.7}, "contamination=0.7 is out of range"),
        ({"solver": "magic"}, "solver='magic' is not known"),
    ],
)
def test_parameters_out_of_range(parameters, words):
    with pytest.raises(FitError, match=words) as caught:
        DFM(**parameters).fit(low_rank(40, 10))
    assert "\n" not in str(caught.value)


def test_rows_that_cannot_be_used():
    x = low_rank(20, 10)
    nan = x.copy()
    nan[3, 4] = np.inf
    for bad, y, words in (
        (nan, None, "NaN or infinite"),
        (np.ones((5, 4)), None, "All rows of features are equal"),
        (x, np.zeros(19), r"y has shape \(19,\) and X has 20 rows"),
        (x[:1], None, "1 sample"),
        (x[0], None, "1D array"),
    ):
        with pytest.raises(DfmError, match=words) as caught:
            DFM().fit(bad, y)
        assert "\n" not in str(caught.value)
    dfm = DFM().fit(x)
    for rows in (x[:, :9], torch.tensor(x[:, :9])):
        with pytest.raises(FitError, match="expecting 10 features"):
            dfm.fre(rows)
    with pytest.raises(FitError, match="NaN or infinite"):
        dfm.nll(nan)
    with pytest.raises(FitError, match="NaN or infinite"):
        dfm.nll(torch.tensor(nan))
    whole = torch.tensor(x.round()).to(torch.int64)
    np.testing.assert_allclose(dfm.fre(whole).numpy(), dfm.fre(x.round()), rtol=1e-9)
    np.testing.assert_allclose(DFM().fit(torch.tensor(x)).fre(x), dfm.fre(x))
    with pytest.raises(FitError, match="at most 10 directions"):
        DFM(50).fit_batches(lambda: [(x, None)])
    with pytest.raises(FitError, match="one label for each row"):
        DFM().fit_batches(lambda: [(x, np.zeros(3))])
    with pytest.raises(FitError, match=r"features: give those of at least one class"):
        DFM.from_moments({})
    with pytest.raises(NotFittedError):
        DFM().predict(x)


def test_no_batches_are_no_rows():
    with pytest.raises(FitError, match="no rows"):
        DFM().fit_batches(lambda: [])
    with pytest.raises(FitError, match="no rows"):
        moments_of([])
