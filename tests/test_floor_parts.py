"""Small defects are found, and outlined, at least as well as sharpness.md says."""

import pytest

from .floors import floor


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_small_defects_of_pills_with_the_default_preset(store, real_data):
    metrics = floor(real_data, "default", "pill", str(real_data / "data")).metrics
    assert metrics["image_auroc"] >= 0.965
    assert metrics["pixel_aupro"] >= 0.878  # of preset anomalib
