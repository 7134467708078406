import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.crossfit import assign_folds, crossfit, unequal_folds
from dfm_mlflow.core.solvers import fit_subspace

from ..conftest import examples


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


def beside_a_direction(n, d, spread, seed=0):
    """Rows of unit noise, and one direction of far larger spread."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    return features(n, d, seed) + spread * rng.normal(size=(n, 1)) * direction


@pytest.mark.parametrize(("spread", "allowed"), [(100, 1e-6), (3000, 1e-4)])
def test_fre_keeps_its_digits_in_float32_beside_a_dominant_direction(spread, allowed):
    """From the Gram matrix as a difference of norms it would be 1 to 100 % off."""
    x, folds = beside_a_direction(60, 600, spread).astype(np.float32), assign_folds(60, 10)
    single, double = crossfit(x, folds, 8), crossfit(x.astype(np.float64), folds, 8)
    np.testing.assert_allclose(single.fre, double.fre, rtol=allowed)
    np.testing.assert_allclose(single.mahalanobis, double.mahalanobis, rtol=allowed)
    explicit = (single.residual().astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(single.fre, explicit, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(40, 120), (120, 30)])
@pytest.mark.parametrize("factor", [1e4, 1e8, 1e12])
def test_a_huge_row_leaves_digits_to_the_model_without_it(n, d, factor, dtype):
    """Sums that held it and from which it was taken again would be rounding and nothing else."""
    x, folds = features(n, d), assign_folds(n, 10)
    x[7] *= factor
    held_out = crossfit(x.astype(dtype), folds, 0.9)
    out = folds == folds[7]
    model = fit_subspace(x[~out], 0.9)
    np.testing.assert_allclose(held_out.fre[out], model.fre(x[out]), rtol=1e-6)
    distance = model.mahalanobis(model.split(x[out])[0])
    np.testing.assert_allclose(held_out.mahalanobis[out], distance, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 80), (80, 60)])
def test_held_out_likelihood_knows_no_variance_below_the_noise_of_the_model(n, d):
    """The final model has none, and of a flat spectrum the noise is above many a variance."""
    x = np.random.default_rng(0).normal(size=(n, d))
    folds = assign_folds(n, 10)
    held_out, model = crossfit(x, folds, 0.9), fit_subspace(x, 0.9)
    model = model.with_noise(held_out.noise_variance(model))
    assert model.variances[-1] < model.noise_variance
    expected = np.zeros(n)
    for fold in range(10):
        out = folds == fold
        other = fit_subspace(x[~out], 0.9).with_noise(model.noise_variance)
        z, e = other.split(x[out])
        expected[out] = model.nll_from(other.mahalanobis(z), (e**2).sum(axis=1))
    np.testing.assert_allclose(held_out.nll(model), expected, rtol=1e-9)


@pytest.mark.parametrize("d", [4, 40])
def test_equal_rows_beside_one_that_differs_are_a_point(d):
    x = np.ones((12, d))
    x[5] = np.arange(d)
    held_out = crossfit(x, np.arange(12), 0.9)
    assert held_out.fre[5] == pytest.approx(((x[5] - 1) ** 2).sum())
    assert held_out.mahalanobis[5] == 0


@pytest.mark.parametrize(("n", "d"), [(20, 120), (60, 30)])
def test_copies_are_fitted_with_their_row_and_never_held_out(n, d):
    own, folds = features(n, d), assign_folds(n, 5)
    both = np.concatenate([own, own[:, ::-1] + 1, 2 * own])  # each row with two altered copies
    held_out = crossfit(both, np.tile(folds, 3), 0.9, own=n)
    assert held_out.fre.shape == held_out.mahalanobis.shape == (n,)
    for fold in range(5):
        out = folds == fold
        model = fit_subspace(both[np.tile(~out, 3)], 0.9)
        expected = model.residual(own[out])
        np.testing.assert_allclose(held_out.residual()[out], expected, atol=1e-8)
        np.testing.assert_allclose(held_out.fre[out], np.square(expected).sum(1), rtol=1e-6)


def test_two_images_are_enough():
    x = features(2, 10)
    held_out = crossfit(x, assign_folds(2), 0.97)
    np.testing.assert_allclose(held_out.residual()[0], x[0] - x[1])


@examples(50)
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


def keys_of(contents):
    return [hashlib.sha256(str(c).encode()).hexdigest() for c in contents]


KEYS = st.lists(st.integers(0, 99), min_size=2, max_size=80).map(keys_of)


@given(KEYS, st.integers(2, 20), st.randoms(use_true_random=False))
def test_another_order_of_the_rows_is_another_order_of_the_folds(keys, n_folds, random):
    order = list(range(len(keys)))
    random.shuffle(order)
    again = assign_folds(len(keys), n_folds, keys=[keys[i] for i in order])
    assert np.array_equal(again, assign_folds(len(keys), n_folds, keys=keys)[order])


@given(KEYS, st.integers(2, 20), st.randoms(use_true_random=False))
def test_names_of_groups_say_nothing(keys, n_folds, random):
    groups = [random.choice("abcdef") for _ in keys]
    renamed = [{g: chr(ord("z") - i) for i, g in enumerate("abcdef")}[g] for g in groups]
    folds = assign_folds(len(keys), n_folds, keys=keys, groups=groups)
    assert np.array_equal(folds, assign_folds(len(keys), n_folds, keys=keys, groups=renamed))
    for group in set(groups):
        assert len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1


@given(st.integers(2, 200), st.integers(2, 30), st.integers(0, 5))
def test_folds_by_hash_are_of_nearly_equal_size(n, n_folds, seed):
    sizes = np.bincount(assign_folds(n, n_folds, keys=keys_of(range(n)), seed=seed))
    assert len(sizes) == min(n, n_folds)
    assert sizes.max() - sizes.min() <= 1


def test_equal_keys_share_a_fold_and_seeds_differ():
    keys = keys_of(range(30))
    folds = assign_folds(90, 10, keys=keys * 3)
    assert np.array_equal(folds[:30], folds[30:60])
    assert not np.array_equal(folds, assign_folds(90, 10, keys=keys * 3, seed=1))


@pytest.mark.parametrize(("n", "d"), [(40, 300), (60, 30)])
def test_each_row_five_times_is_held_out_as_once(n, d):
    x, keys = features(n, d), keys_of(range(n))
    once = crossfit(x, assign_folds(n, 10, keys=keys), 0.9)
    folds = assign_folds(5 * n, 10, keys=keys * 5)
    five = crossfit(np.tile(x, (5, 1)), folds, 0.9)
    np.testing.assert_allclose(five.fre, np.tile(once.fre, 5), rtol=1e-8)


@pytest.mark.parametrize("sizes", [[5] * 20, [10] * 3, [1] * 31, [30] * 10, [15, 14] * 10])
def test_folds_of_alike_size_are_fine(sizes):
    assert unequal_folds(np.repeat(np.arange(len(sizes)), sizes)) is None


def test_a_fold_that_holds_much_of_all_is_said():
    sentence = unequal_folds(np.repeat(np.arange(11), [60] + [10] * 10))
    assert "a fold of 60 of 160 pictures, the smallest holds 10" in sentence


def test_held_out_noise_is_what_new_rows_show():
    x = features(400, 600)
    train, new = x[:100], x[100:]
    model = fit_subspace(train, 0.9)
    noise = crossfit(train, assign_folds(100), 0.9).noise_variance(model)
    seen = model.fre(new).mean() / (600 - model.n_components)
    assert noise == pytest.approx(seen, rel=0.05)
    assert model.noise_variance < 0.9 * seen  # in-sample residuals are too small
