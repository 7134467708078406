import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.duplicates import WIDTH
from dfm_mlflow.detector.class_fit import fit_class_held_out
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of

from ..detectors import deal

SHAPE = (3, 4, 5)
GRID = Grid(SHAPE, np.ones(SHAPE[1:], bool))


def features(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *SHAPE))).float()


def test_held_out_scores_are_those_of_the_calibration_each_at_its_picture():
    options = Options.parse({"pca_level": "0.5", "layers": "layer1", "aggregate": "max"}).resolve()
    x = features(30)
    x[17] *= 9
    model, seen = fit_class_held_out("a", [x], deal(30), [GRID], options)
    np.testing.assert_array_equal(np.sort(seen.score), model.calibration.scores)
    assert seen.score.argmax() == 17
    # the largest value of the map of the same picture, brought to the final model
    largest = np.array([float(seen.maps[i].max()) for i in range(30)])
    ratio = seen.score / largest
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.15)
    assert ratio.mean() == pytest.approx(model.calibration.refit_ratio, rel=0.01)


def test_classes_are_put_back_into_the_order_of_the_pictures():
    places = [np.array([0, 3]), np.array([1, 2, 4])]
    parts = [
        HeldOutScores(
            10.0 * mine,
            mine / 5,
            {0: torch.full((1, 1), float(mine[0]))},
            np.broadcast_to(mine[:, None, None], (len(mine), 2, 3)),
        )
        for mine in places
    ]
    joined = HeldOutScores.joined(parts, places)
    np.testing.assert_array_equal(joined.score, [0, 10, 20, 30, 40])
    assert {i: float(m) for i, m in joined.maps.items()} == {0: 0.0, 1: 1.0}
    np.testing.assert_array_equal(joined.sketches[:, 1, 2], np.arange(5))
    parts[0] = HeldOutScores(parts[0].score, parts[0].p_value, {}, None)
    assert HeldOutScores.joined(parts, places).sketches is None


def test_sketches_see_only_cells_that_count_and_share_their_numbers_among_layers():
    cells = np.ones(SHAPE[1:], bool)
    cells[0] = False
    x, other = features(4), features(4)
    other[:, :, 0] = 7  # outside the region
    two = [Grid(SHAPE, cells)] * 2
    found, same = (sketches_of([f, f], two) for f in (x, other))
    assert found.shape == (4, 2, WIDTH // 2)
    np.testing.assert_array_equal(found, same)
