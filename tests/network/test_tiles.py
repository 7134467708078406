import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.errors import BackboneError
from dfm_mlflow.network.tiles import run_tiles, scaled_mask

from ..conftest import examples


def means(*strides):
    """A network that sees no border: each cell is the mean of its own pixels."""
    return lambda x: {f"mean{s}": F.avg_pool2d(x, s) for s in strides}


@examples(25)
@given(
    st.sampled_from([128, 256]), st.integers(0, 10), st.integers(0, 10), st.sampled_from([8, 32])
)
def test_tiles_of_a_network_without_borders_are_the_whole_picture(side, more, further, stride):
    size = side + 32 * more, side + 32 * further
    x = torch.randn(2, 3, *size, generator=torch.manual_seed(more))
    (found,) = run_tiles(means(stride), x, side).values()
    torch.testing.assert_close(found, F.avg_pool2d(x, stride))


def test_layers_of_several_strides_are_put_together_apart():
    x = torch.randn(1, 3, 320, 256)
    found = run_tiles(means(4, 16), x, 128)
    assert {k: tuple(v.shape[2:]) for k, v in found.items()} == {
        "mean4": (80, 64),
        "mean16": (20, 16),
    }
    torch.testing.assert_close(found["mean16"], F.avg_pool2d(x, 16))


def test_the_border_of_a_tile_is_seen_at_the_border_of_the_picture_only():
    def bordered(x):
        """Marks the cells that a network's own zero padding reaches."""
        y = F.avg_pool2d(torch.ones_like(x), 8)
        y[:, :, 1:-1, 1:-1] = 0
        return {"border": y}

    (found,) = run_tiles(bordered, torch.zeros(1, 3, 480, 352), 128).values()
    assert found[:, :, 1:-1, 1:-1].eq(0).all()
    assert found[:, :, [0, -1]].eq(1).all()
    assert found[:, :, :, [0, -1]].eq(1).all()


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x.mean((2, 3)),  # no map
        lambda x: F.avg_pool2d(x, (8, 16)),  # not square
        lambda x: F.avg_pool2d(x, 64),  # tiles begin within its cells
    ],
)
def test_a_layer_whose_cells_do_not_fit_is_refused(output):
    with pytest.raises(BackboneError, match="layer odd has no cells that fit tiles of 128 pixels"):
        run_tiles(lambda x: {"odd": output(x)}, torch.zeros(1, 3, 256, 160), 128)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_a_mask_made_larger_repeats_its_pixels_and_comes_back(h, w, a, b):
    mask = np.random.default_rng(h * 13 + w).random((h, w)) < 0.5
    large = scaled_mask(mask, (h * a, w * b))
    np.testing.assert_array_equal(large, np.kron(mask, np.ones((a, b), bool)))
    np.testing.assert_array_equal(scaled_mask(large, (h, w)), mask)


def test_a_mask_of_the_right_size_is_not_copied():
    mask = np.zeros((3, 4), bool)
    assert scaled_mask(mask, (3, 4)) is mask
