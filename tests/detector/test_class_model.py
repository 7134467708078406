import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.leading_coordinates import n_leading
from dfm_mlflow.detector.class_model import raw_scores, score_class
from dfm_mlflow.detector.grid import Grid

from ..detectors import fit_class

SHAPE = (3, 4, 5)
CELLS = np.random.default_rng(0).random(SHAPE[1:]) < 0.6


def features(n, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)) @ np.random.default_rng(9).normal(size=(4, 60))
    return torch.from_numpy((rows + 0.1 * rng.normal(size=(n, 60))).astype(np.float32)).view(
        n, *SHAPE
    )


def options(**given):
    return Options.parse({"pca_level": "0.9", **given}).resolve()


@pytest.mark.parametrize("cells", [CELLS, np.ones(SHAPE[1:], bool)], ids=["region", "whole"])
def test_rows_and_maps_of_a_grid_are_each_other_s_inverse(cells):
    grid, x = Grid(SHAPE, cells), features(6, 1)
    rows = grid.rows(x)
    assert rows.shape == (6, grid.n_features)
    found = grid.fre_map(rows)
    expected = (x**2).sum(1) * torch.from_numpy(cells)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grid.inside(found).sum(1), (rows**2).sum(1))


def test_cells_outside_the_region_change_nothing():
    grid, given = Grid(SHAPE, CELLS), options(layers="layer1")
    model = fit_class("a", [features(40, 2)], None, [grid], given).on(torch.device("cpu"))
    new = features(5, 3)
    other = torch.where(torch.from_numpy(CELLS), new, torch.tensor(1e3))
    one, two = (score_class(model, [x], [grid], given) for x in (new, other))
    for name in ("score", "fre", "nll", "maps"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("score", ["fre", "nll"])
@pytest.mark.parametrize("aggregate", ["max", "sum", "top:0.1"])
def test_pictures_do_not_influence_each_other(score, aggregate):
    grid = Grid(SHAPE, np.ones(SHAPE[1:], bool))
    given = options(layers="layer1", score=score)
    given = given.model_copy(update={"aggregate": aggregate})
    model = fit_class("a", [features(40, 2)], None, [grid], given).on(torch.device("cpu"))
    new = features(7, 4)
    whole = score_class(model, [new], [grid], given)
    alone = torch.cat([score_class(model, [x[None]], [grid], given).score for x in new])
    torch.testing.assert_close(whole.score, alone, rtol=1e-4, atol=1e-5)
    if score == "nll":
        assert torch.equal(whole.score, whole.nll)


def test_the_map_of_a_layer_sums_to_its_error():
    grid = Grid(SHAPE, CELLS)
    model = fit_class("a", [features(40, 2)] * 2, None, [grid] * 2, options(layers="a1,a2"))
    layers, new = model.on(torch.device("cpu")).layers, features(5, 5)
    raw = raw_scores(layers, [new, new], [grid, grid])
    torch.testing.assert_close(raw.fre, sum(m.sum((1, 2)) for m in raw.maps))
    for layer, coordinates in zip(layers, raw.leading_coordinates, strict=True):
        z = layer.subspace.split(grid.rows(new))[0]
        assert torch.equal(coordinates, z[:, : n_leading(layer.subspace)])
        torch.testing.assert_close(
            raw.maps[0].sum((1, 2)), layer.subspace.fre(grid.rows(new)), rtol=1e-4, atol=1e-5
        )
