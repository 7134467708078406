import numpy as np
import pytest

from dfm_mlflow.core.calibration import Calibration, is_anomaly
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.refit import refit_ratio
from dfm_mlflow.core.solvers import fit_subspace

SPREAD = np.arange(1, 201) ** -0.5


def draw(rng, n):
    return rng.normal(size=(n, 200)) * SPREAD


@pytest.mark.parametrize(
    "sizes", [[5] * 20, [1] * 30, [40, 3, 7, 1, 12, 9, 20, 8], [30, 1, 1, 1, 1]]
)
def test_seven_tenths_of_the_way_to_all_rows_are_gone(sizes):
    folds = np.repeat(np.arange(len(sizes)), sizes)
    n, slope = len(folds), 0.3
    level = np.random.default_rng(0).normal(size=n)

    def under(rows, n_out):
        return np.exp(level[rows] + slope / (1 - n_out / n))

    held_out = under(np.arange(n), np.array(sizes)[folds])
    ratio = refit_ratio(held_out, folds, lambda out: under(out, len(out)))
    way = np.log(under(np.arange(n), 0) / held_out)
    np.testing.assert_allclose(np.log(ratio), 0.7 * way)


def test_twenty_folds_have_seven_tenths_of_an_exponent_of_nine_tenths():
    rng = np.random.default_rng(0)
    fre, fewer = rng.gamma(5, size=(2, 100)) + [[0], [1]]
    ratio = refit_ratio(fre, np.arange(100) % 20, lambda out: fewer[out])
    np.testing.assert_allclose(ratio, np.exp(0.63 * np.mean(np.log(fre) - np.log(fewer))))


def test_nothing_is_estimated_from_less_than_four_folds_or_no_residual():
    ones = refit_ratio(np.ones(9), np.arange(9) % 3, lambda out: np.full(len(out), 2.0))
    assert (ones == 1).all()
    assert (refit_ratio(np.zeros(9), np.arange(9), lambda out: np.zeros(len(out))) == 1).all()


def test_many_rows_take_no_more_than_a_few_pairs_of_folds():
    asked = []

    def fre_without(out):
        asked.extend(out)
        return np.ones(len(out))

    refit_ratio(np.ones(4000), np.arange(4000) % 10, fre_without)
    assert len(asked) == 800


def test_new_rows_are_nearly_as_far_from_the_final_subspace_as_it_says():
    rng, raw, refit, rates = np.random.default_rng(0), [], [], {False: [], True: []}
    for _ in range(60):
        x = draw(rng, 59)
        held_out = crossfit(x, assign_folds(59), 0.97)
        ratio = held_out.refit_ratio()
        new = fit_subspace(x, 0.97).fre(draw(rng, 300))
        raw.append(held_out.fre.mean() / new.mean())
        refit.append((held_out.fre * ratio).mean() / new.mean())
        for corrected, found in rates.items():
            c = Calibration.of(held_out.fre, refit_ratio=ratio if corrected else None)
            found.append(is_anomaly(c.p_value(new), 0.1).mean())
    assert np.mean(raw) > 1.015
    assert 0.993 < np.mean(refit) < np.mean(raw) - 0.01
    error = np.std(rates[True]) / np.sqrt(60)
    assert np.mean(rates[False]) + error < np.mean(rates[True]) <= 0.1 + 3 * error


def test_rows_that_are_many_are_left_as_they_are(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 80))
    assert crossfit(x[:, :8], assign_folds(50), 0.9).refit_ratio is None
    assert crossfit(x, assign_folds(50), 0.9).refit_ratio is not None
    monkeypatch.setattr("dfm_mlflow.core.crossfit.MOST_REFIT", 49)
    assert crossfit(x, assign_folds(50), 0.9).refit_ratio is None
