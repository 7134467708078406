"""Solar cells are told apart at least as well as when the method was first tried on them."""

import pytest

from .floors import floor


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_solar_cells_reach_what_a_prototype_did(store, real_data):
    pytest.importorskip("elpv_dataset")
    assert floor(real_data, "default", "mono", "elpv").metrics["image_auroc"] >= 0.955
