import numpy as np
import pytest

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.errors import FitError

from .test_dfm import low_rank


def test_many_rows_of_few_features_have_the_share_of_outliers_that_was_asked_for():
    """What scikit-learn means by contamination, where training rows score as new ones do."""
    x, new = np.split(low_rank(2300, 2), [300])
    for share in (0.01, 0.1, 0.5):
        dfm = DFM(contamination=share).fit(x)
        assert (dfm.predict(x) == -1).mean() == pytest.approx(share)
        assert (dfm.predict(new) == -1).mean() == pytest.approx(share, abs=0.04)
        np.testing.assert_allclose(dfm.decision_function(x), dfm.score_samples(x) - dfm.offset_)


@pytest.mark.parametrize("score_type", ["nll", "fre"])
@pytest.mark.parametrize(
    ("n", "d", "rank"), [(60, 400, 6), (100, 400, 0), (150, 30, 6), (300, 50, 0)]
)
def test_new_good_rows_are_called_outliers_about_as_often_as_was_asked_for(n, d, rank, score_type):
    """The quantile of the training rows' own scores would call up to all of them so."""
    rates, far = [], []
    for seed in range(6):
        x, new = np.split(low_rank(n + 300, d, rank, seed=seed), [n])
        dfm = DFM(contamination=0.1, score_type=score_type).fit(x)
        rates.append((dfm.predict(new) == -1).mean())
        far.append((dfm.predict(new + 30) == -1).mean())
    assert 0.04 < np.mean(rates) < 0.13
    assert np.mean(far) == 1


def test_a_share_that_no_rows_can_promise_is_one_in_n_plus_one():
    x, new = np.split(low_rank(20 + 2000, 50, 3), [20])
    rates = [(DFM(contamination=c).fit(x).predict(new) == -1).mean() for c in (0.001, 1 / 21)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("score_type", ["nll", "fre"])
def test_offset_without_rows_is_the_quantile_of_the_density(score_type):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 30)) * np.r_[[9.0] * 4, [1.0] * 26]
    dfm = DFM(4, contamination=0.1, score_type=score_type, noise="in-sample").partial_fit(x)
    assert (dfm.predict(x) == -1).mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_a_small_class_beside_a_large_one_keeps_its_rows(n):
    """All directions of few rows are kept; the noise that is left must not vanish with them."""
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=(300, 500)), 3 + rng.normal(size=(n + 40, 500))
    for noise in ("auto", "gcv"):
        dfm = DFM(noise=noise).fit(np.concatenate([large, small[:n]]), np.repeat([0, 1], [300, n]))
        assert (dfm.predict_class(small[n:]) == 1).all()
        model = dfm.subspaces_[1]
        seen = model.fre(small[n:]).mean() / (500 - model.n_components)
        assert model.noise_variance == pytest.approx(seen, rel=0.5)


@pytest.mark.parametrize(("n", "d"), [(60, 900), (300, 40)])
def test_corrected_noise_is_what_new_rows_show(n, d):
    x, new = np.split(low_rank(n + 500, d, rank=20), [n])
    seen, model_of = {}, {}
    for noise in ("gcv", "held-out", "in-sample"):
        (model,) = DFM(0.9, noise=noise).fit(x).subspaces_
        true = model.fre(new).mean() / (d - model.n_components)
        seen[noise], model_of[noise] = model.noise_variance / true, model.noise_variance
    assert DFM(0.9).fit(x).subspaces_[0].noise_variance == model_of["held-out"]
    assert DFM(0.9).partial_fit(x[:, :30]).subspaces_[0].noise_variance == (
        DFM(0.9, noise="gcv").fit(x[:, :30]).subspaces_[0].noise_variance
    )
    assert seen["held-out"] == pytest.approx(1, abs=0.3)
    # not exact: the directions were chosen for their variance, noise included
    assert seen["gcv"] == pytest.approx(1, abs=0.4)
    assert n > d or seen["in-sample"] < 0.4
    with pytest.raises(FitError, match="needs all rows at once"):
        DFM(noise="held-out").partial_fit(x[:, :30])


@pytest.mark.parametrize(("n", "k"), [(20, 0.97), (100, 0.97), (100, 90)])
def test_noise_without_rows_is_bounded_by_all_of_the_variance(n, k):
    """With k near n the correction of generalised cross-validation alone was 5 to 26 times off."""
    x, new = np.split(np.random.default_rng(0).normal(size=(n + 300, 400)), [n])
    (model,) = DFM(k).partial_fit(x).subspaces_
    seen = model.fre(new).mean() / (400 - model.n_components)
    assert 0.4 < model.noise_variance / seen < 1.5
