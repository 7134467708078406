import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.solvers import fit_subspace


def features(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)) @ rng.normal(size=(5, d)) * 3 + rng.normal(size=(n, d)) + 7


@pytest.mark.parametrize(("n", "d"), [(40, 120), (120, 30)])
def test_each_row_scores_as_under_the_model_without_its_fold(n, d):
    x, folds = features(n, d), assign_folds(n, 10)
    held_out = crossfit(x, folds, 0.9)
    for fold in range(10):
        out = folds == fold
        model = fit_subspace(x[~out], 0.9)
        expected = model.residual(x[out])
        np.testing.assert_allclose(held_out.residual()[out], expected, atol=1e-9)
        z = model.split(x[out])[0]
        distance = (z**2 / np.maximum(model.variances, model.noise_variance)).sum(1)
        np.testing.assert_allclose(held_out.mahalanobis[out], distance, rtol=1e-8)


def test_two_images_are_enough():
    x = features(2, 10)
    held_out = crossfit(x, assign_folds(2), 0.97)
    np.testing.assert_allclose(held_out.residual()[0], x[0] - x[1])


@settings(max_examples=50)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.integers(2, 20))
def test_groups_are_never_split(groups, n_folds):
    folds = assign_folds(len(groups), n_folds, groups=groups)
    for group in set(groups):
        assert len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1
    assert len(set(folds)) == min(n_folds, len(set(groups)))


@given(st.integers(2, 300), st.integers(2, 30))
def test_folds_are_of_nearly_equal_size(n, n_folds):
    sizes = np.bincount(assign_folds(n, n_folds))
    assert len(sizes) == min(n, n_folds)
    assert sizes.max() - sizes.min() <= 1


def test_held_out_noise_is_what_new_rows_show():
    x = features(400, 600)
    train, new = x[:100], x[100:]
    model = fit_subspace(train, 0.9)
    noise = crossfit(train, assign_folds(100), 0.9).noise_variance(model)
    seen = model.fre(new).mean() / (600 - model.n_components)
    assert noise == pytest.approx(seen, rel=0.05)
    assert model.noise_variance < 0.9 * seen  # in-sample residuals are too small
