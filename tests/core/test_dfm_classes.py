import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from dfm_mlflow.core.dfm import DFM


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


@pytest.mark.parametrize("likelihood", ["ppca", "subspace"])
@pytest.mark.parametrize("score_type", ["nll", "fre"])
def test_classes_of_scale_a_thousandth_and_a_thousand_are_told_apart(score_type, likelihood):
    """Around one centre, where a fine row is nothing beside the usual FRE of the coarse class."""
    rng = np.random.default_rng(0)
    scale = np.repeat([1e-3, 1e3], 400)
    spread = np.r_[[5.0] * 3, [1.0] * 17]
    x = rng.normal(size=(800, 20)) * spread * scale[:, None]
    y = np.repeat(["fine", "coarse"], 400)
    new = rng.normal(size=(800, 20)) * spread * scale[:, None]
    dfm = DFM(3, score_type=score_type, likelihood=likelihood, contamination=0.05).fit(x, y)
    assert (dfm.predict_class(new) == y).all()
    outlier = dfm.predict(new) == -1
    defects = new[:400] + 4e-3 * rng.normal(size=(400, 20))
    for name in ("fine", "coarse"):  # one offset for both would leave all outliers to one
        assert outlier[y == name].mean() == pytest.approx(0.05, abs=0.04)
    if (score_type, likelihood) != ("nll", "subspace"):  # which knows nothing of what is outside
        assert (dfm.predict(defects) == -1).mean() > 0.95
    assert dfm.offset_.shape == (2,)


def test_a_hundred_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16)) * 20
    y = np.repeat(np.arange(100), 12)
    dfm = DFM(3).fit(centres[y] + rng.normal(size=(1200, 16)), y)
    new = centres[y] + rng.normal(size=(1200, 16))
    assert (dfm.predict_class(new) == y).mean() > 0.99


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
