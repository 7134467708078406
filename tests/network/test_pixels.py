import numpy as np

from .conftest import make


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
