"""Solar cells are told apart at least as well as when the method was first tried on them."""

import pytest

from .floors import floor


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 400 s on two quiet cores
@pytest.mark.parametrize(
    ("preset", "category", "least"),
    [("anomalib", "mono", 0.935), ("default", "mono", 0.952), ("default", "poly", 0.890)],
)
def test_solar_cells_reach_what_a_prototype_did(store, real_data, preset, category, least):
    pytest.importorskip("elpv_dataset")
    assert floor(real_data, preset, category, "elpv").metrics["image_auroc"] >= least
