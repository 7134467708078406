import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dfm_mlflow.core.cells import (
    CellSubspaces,
    crossfit_cells,
    fold_moments,
    folds_of_parts,
    held_out_block,
    merged,
    total_moments,
)
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.solvers import fit_moments, fit_subspace
from dfm_mlflow.errors import FitError

N, P, D = 12, 20, 9
FOLDS = np.arange(N) % 4


def cells(n=N, seed=0):
    """Cells of n pictures with a spectrum, around a mean that is large beside their spread."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, P, D)) * np.geomspace(3, 0.1, D)
    return mixed @ np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0] + 50


def blocks_of(x, step=5):
    return lambda: (x[i : i + step] for i in range(0, len(x), step))


def test_subspace_is_that_of_all_cells():
    x = cells()
    pca = PCA(0.9, svd_solver="full").fit(x.reshape(-1, D))
    final = crossfit_cells(blocks_of(x), FOLDS, 0.9)[0].final
    assert final.n_components == pca.n_components_
    ours, theirs = final.basis @ final.basis.T, pca.components_.T @ pca.components_
    np.testing.assert_allclose(ours, theirs, atol=1e-10)
    np.testing.assert_allclose(final.variances, pca.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(final.mean, pca.mean_, rtol=1e-12)
    assert final.n_samples == N


def test_moments_of_other_folds_are_those_of_their_cells():
    x = cells()
    whole = total_moments(blocks_of(x)(), FOLDS)
    total = Moments.of(x.reshape(-1, D))
    for f, part in whole.items():
        rest = total.without(part)
        again = Moments.of(x[f != FOLDS].reshape(-1, D))
        assert rest.n == again.n
        error = np.abs(rest.scatter - again.scatter).max()
        assert error < 1e-10 * np.trace(again.scatter)


def test_held_out_cells_score_as_under_a_model_refitted_without_them():
    x = cells()
    subspaces, held_out = crossfit_cells(blocks_of(x, 7), FOLDS, 0.9)
    for i in range(N):
        refitted = fit_subspace(x[FOLDS[i] != FOLDS].reshape(-1, D), 0.9, solver="covariance")
        np.testing.assert_allclose(held_out.maps[i], refitted.fre(x[i]), rtol=1e-6)
    model = subspaces.final.with_noise(held_out.noise_variance(subspaces.final))
    nll = held_out.nll(model)
    rest = D - model.n_components
    assert model.noise_variance == pytest.approx(held_out.maps.mean() / rest)
    for i in range(N):
        without = subspaces.without[int(FOLDS[i])]
        z, e = without.split(x[i])
        floored = np.maximum(without.variances, model.noise_variance)
        distance = (z**2 / floored).sum(1)
        own = model.nll_from(distance, (e**2).sum(1))
        assert nll[i] == pytest.approx(own.sum(), rel=1e-9)


def test_likelihood_of_a_picture_is_the_sum_over_its_cells():
    x = cells(1)[0]
    model = fit_subspace(x, 0.9)
    z = model.split(x)[0]
    together = model.nll_from(model.mahalanobis(z).sum(), model.fre(x).sum(), P)
    assert together == pytest.approx(model.nll(x).sum(), rel=1e-12)


def test_neither_blocks_nor_the_order_of_their_sums_matter():
    x = cells()
    once = crossfit_cells(blocks_of(x, N), FOLDS, 0.9)[1]
    many = crossfit_cells(blocks_of(x, 1), FOLDS, 0.9)[1]
    np.testing.assert_allclose(once.maps, many.maps, rtol=1e-8)
    order = np.arange(N)[::-1]
    back = merged(
        fold_moments(x[order[:5]], FOLDS[order[:5]]), fold_moments(x[order[5:]], FOLDS[order[5:]])
    )
    fitted = CellSubspaces.of(back, 0.9)
    block = held_out_block(x, FOLDS, fitted.without)
    np.testing.assert_allclose(block.maps, once.maps, rtol=1e-8)


@pytest.mark.parametrize("folds", [FOLDS, folds_of_parts((4, 5)).repeat(N, axis=0)])
def test_tensors_give_the_same_numbers(folds):
    x = cells()
    ours, held_out = crossfit_cells(blocks_of(x), folds, 0.9)
    theirs, other = crossfit_cells(blocks_of(torch.tensor(x)), folds, 0.9)
    np.testing.assert_allclose(other.maps, held_out.maps, rtol=1e-8)
    np.testing.assert_allclose(other.means, held_out.means, rtol=1e-12)
    np.testing.assert_allclose(theirs.final.variances, ours.final.variances, rtol=1e-9)
    np.testing.assert_allclose(other.nll(ours.final), held_out.nll(ours.final), rtol=1e-8)


def test_copies_are_fitted_and_neither_held_out_nor_apart_from_their_picture():
    x = cells()
    copies = x[:, ::-1] * 1.01
    both = np.concatenate([x, copies])
    subspaces, held_out = crossfit_cells(blocks_of(both), np.tile(FOLDS, 2), 0.9, own=N)
    assert held_out.maps.shape == (N, P)
    rest = np.tile(FOLDS, 2) != FOLDS[3]
    refitted = fit_subspace(both[rest].reshape(-1, D), 0.9, solver="covariance")
    np.testing.assert_allclose(held_out.maps[3], refitted.fre(x[3]), rtol=1e-6)
    assert subspaces.final.n_samples == N


def test_parts_of_a_single_picture_are_held_out():
    x = cells(1)
    folds = folds_of_parts((4, 5))
    assert folds.shape == (1, P)
    assert len(np.unique(folds)) == 4
    _, held_out = crossfit_cells(blocks_of(x), folds, 0.9)
    for f in range(4):
        rest = folds[0] != f
        refitted = fit_subspace(x[0, rest], 0.9, solver="covariance")
        np.testing.assert_allclose(held_out.maps[0, ~rest], refitted.fre(x[0, ~rest]), rtol=1e-6)
    assert np.isfinite(held_out.nll(fit_moments(Moments.of(x[0]), 0.9))).all()


def test_leading_coordinates_are_of_the_mean_cell():
    x = cells(60)
    folds = np.arange(60) % 5
    subspaces, held_out = crossfit_cells(blocks_of(x), folds, 0.9)
    leading_coordinates = held_out.leading_coordinates(subspaces)
    assert leading_coordinates.shape == (60, 3)
    final = subspaces.final
    direct = (x.mean(axis=1) - final.mean) @ final.basis[:, :3]
    assert np.corrcoef(leading_coordinates[:, 0], direct[:, 0])[0, 1] > 0.99


def test_one_fold_and_no_cells_are_refused():
    x = cells()
    with pytest.raises(FitError, match="in one group"):
        crossfit_cells(blocks_of(x), np.zeros(N, int), 0.9)
    with pytest.raises(FitError, match="no cells"):
        total_moments([], FOLDS)


def test_one_huge_picture_costs_the_others_no_digit():
    x = cells()
    x[4] *= 1e9
    folds = np.arange(N)
    held_out = crossfit_cells(blocks_of(x), folds, 0.9)[1]
    refitted = fit_subspace(np.delete(x, 4, axis=0).reshape(-1, D), 0.9, solver="covariance")
    np.testing.assert_allclose(held_out.maps[4], refitted.fre(x[4]), rtol=1e-6)
