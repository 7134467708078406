import numpy as np
import pytest
import torch

from dfm_mlflow.network.copies import COPIES, turned
from dfm_mlflow.network.pixels import stacked

from .conftest import make


@pytest.mark.parametrize("resize", ["stretch", "keep"])
@pytest.mark.parametrize("size", [(64, 64), (40, 120), (300, 301), (1, 7), (64, 128)])
def test_a_grey_picture_gives_what_its_three_colours_give(backbone, resize, size):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, size, dtype=np.uint8)
    colours = np.repeat(grey[:, :, None], 3, axis=2)
    region = rng.random((8, 8)) < 0.7
    for roi in (None, region):
        pixels = make(backbone, resize=resize, roi=roi).pixels
        for one in COPIES["all"]:
            seen = pixels.resized(turned(grey, one))
            assert torch.equal(seen, pixels.resized(turned(colours, one)))
            assert seen.shape == (3, 64, 64)


def test_inputs_are_put_together_with_their_colours_beside_each_other():
    inputs = [torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8) for _ in range(3)]
    inputs[1] = inputs[1].contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for n in (1, 2, 3):
        assert torch.equal(stacked(inputs[:n]), torch.stack(inputs[:n]))
    assert stacked(inputs).is_contiguous(memory_format=torch.channels_last)


def test_keep_pads_and_stretch_does_not(backbone):
    wide = np.full((40, 120, 3), 200, np.uint8)
    kept = make(backbone, resize="keep").pixels.resized(wide)
    assert kept.shape == (3, 64, 64)
    assert (kept[:, 22:42] == 200).all()
    assert kept[:, 0, 0].tolist() == [124, 116, 104]
    assert (make(backbone).pixels.resized(wide) == 200).all()


def test_what_the_region_of_interest_leaves_out_is_padding(backbone):
    cells = np.zeros((8, 8), bool)
    cells[2:6, 4:] = True
    inside = np.kron(cells, np.ones((8, 8), bool))
    extractor = make(backbone, roi=inside)
    seen = extractor.pixels.resized(np.full((64, 64, 3), 200, np.uint8)).numpy()
    assert (seen[:, inside] == 200).all()
    assert (seen[:, ~inside] == np.array([[124], [116], [104]])).all()
    # a cell counts as soon as the region touches it
    np.testing.assert_array_equal(extractor.pixels.roi_cells((8, 8)), cells)
    assert extractor.pixels.roi_cells((2, 2)).tolist() == [[False, True], [False, True]]
    assert make(backbone).pixels.roi_cells((2, 2)).all()


def test_the_filled_part_is_where_the_picture_is(backbone):
    for size in ((40, 120), (120, 40), (64, 64), (500, 333)):
        extractor = make(backbone, resize="keep")
        seen = extractor.pixels.resized(np.zeros((*size, 3), np.uint8)).numpy()
        filled = (seen == 0).all(axis=0)
        share = filled.any(axis=1).mean(), filled.any(axis=0).mean()
        assert extractor.pixels.filled_part(size) == share
        assert make(backbone).pixels.filled_part(size) == (1, 1)
