"""Magnetic tile is told apart at least as well as when the method was first tried on it."""

import numpy as np
import pytest

import dfm_mlflow

from .floors import floor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_magnetic_tile_with_the_default_preset(store, real_data):
    result = floor(real_data, "default", "magnetic_tile", str(real_data / "data"))
    metrics = result.metrics
    assert metrics["image_auroc"] >= 0.988
    assert metrics["pixel_aupro"] >= 0.759  # of preset anomalib
    assert metrics["false_positive_rate"] <= 0.03  # promised 0.01 on 289 good pictures

    # the likelihood is worth as much as the reconstruction error
    assert metrics["image_auroc_nll"] >= metrics["image_auroc_fre"] - 0.01

    # the artifact scores as what was fitted
    assert metrics["model_megabytes"] < 100
    pictures = sorted((real_data / "data/magnetic_tile/test").glob("*/*"))[::20]
    images = [path.read_bytes() for path in pictures]
    fitted, saved = result.detector, dfm_mlflow.load_model(result.model_uri)
    columns = ["anomaly_score", "fre", "nll", "p_value"]
    np.testing.assert_allclose(
        saved.score(images)[columns], fitted.score(images)[columns], rtol=1e-4
    )
