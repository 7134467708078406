"""Small defects are found, and outlined, at least as well as sharpness.md says."""

import pytest

from .floors import floor


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("category", "auroc", "outlines"),  # the latter is what preset anomalib reaches
    [("pill", 0.965, 0.878), ("kolektorsdd", 0.87, 0.632)],
)
def test_small_defects_with_the_default_preset(store, real_data, category, auroc, outlines):
    metrics = floor(real_data, "default", category, str(real_data / "data")).metrics
    assert metrics["image_auroc"] >= auroc
    assert metrics["pixel_aupro"] >= outlines
