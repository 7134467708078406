import numpy as np
import pytest
import torch

from dfm_mlflow.core.aggregation import aggregate, residual_map
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
