import numpy as np
import pytest
import torch

from dfm_mlflow.core.aggregation import aggregate, residual_map
from dfm_mlflow.core.metrics import decision_metrics, ranking_metrics
from dfm_mlflow.errors import ConfigError

RNG = np.random.default_rng(0)


def test_map_sums_to_the_fre():
    e = RNG.normal(size=(4, 3 * 5 * 6))
    maps = residual_map(e, 3)
    assert maps.shape == (4, 30)
    np.testing.assert_allclose(aggregate(maps, "sum"), (e**2).sum(1))
    np.testing.assert_allclose(maps[2, 10], (e[2].reshape(3, 5, 6)[:, 1, 4] ** 2).sum())


def test_top_lies_between_mean_and_maximum():
    maps = RNG.random((7, 8, 8))
    np.testing.assert_allclose(aggregate(maps, "top:1"), maps.mean((1, 2)))
    np.testing.assert_allclose(aggregate(maps, "top:0.001"), aggregate(maps, "max"))
    flat = np.sort(maps.reshape(7, -1))[:, -6:]
    np.testing.assert_allclose(aggregate(maps, "top:0.1"), flat.mean(1))


@pytest.mark.parametrize("how", ["sum", "max", "top:0.1"])
def test_images_do_not_influence_each_other_and_torch_agrees(how):
    maps = RNG.random((5, 8, 8))
    alone = np.concatenate([aggregate(m[None], how) for m in maps])
    np.testing.assert_allclose(aggregate(maps, how), alone)
    np.testing.assert_allclose(aggregate(torch.tensor(maps), how).numpy(), alone)


def test_unknown_aggregation_is_refused():
    with pytest.raises(ConfigError, match="median"):
        aggregate(np.ones((1, 2, 2)), "median")


def test_metrics_of_a_small_example():
    defective = np.array([False, False, False, True, True])
    scores = np.array([1.0, 2, 4, 3, 5])
    ranking = ranking_metrics(defective, scores)
    assert ranking["image_auroc"] == pytest.approx(5 / 6)
    assert ranking["image_f1_max"] == pytest.approx(0.8)
    decided = decision_metrics(defective, scores > 3.5)
    assert decided == {
        "image_f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "false_positive_rate": 1 / 3,
        "false_negative_rate": 0.5,
    }
    assert ranking_metrics(defective[:3], scores[:3]) == {}
    assert set(decision_metrics(defective[:3], scores[:3] > 3)) == {
        "image_f1",
        "precision",
        "false_positive_rate",
    }
