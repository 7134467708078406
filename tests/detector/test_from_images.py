"""A detector from images in memory is the one that files give."""

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow import AnomalyDetector
from dfm_mlflow.errors import ConfigError, FitError, ImageError
from dfm_mlflow.images.decode import decode_image

from ..detectors import pictures

SMALL = {"weights": "random", "image_size": 64, "fpr": 0.1}
GOOD = pictures(24)


@pytest.fixture(scope="module")
def detector():
    return AnomalyDetector.from_images(GOOD, **SMALL)


def test_any_form_of_the_same_images_gives_the_same_detector(detector, tmp_path):
    for i, data in enumerate(GOOD):
        (tmp_path / f"{i:02d}.png").write_bytes(data)
    arrays = [decode_image(data) for data in GOOD]
    new = pictures(3, 5) + pictures(3, 6, defect=True)
    expected = detector.score(new)
    for images in (
        sorted(tmp_path.iterdir()),
        [Image.open(p) for p in sorted(tmp_path.iterdir())],
        np.stack(arrays),
    ):
        same = AnomalyDetector.from_images(images, **SMALL)
        found = same.score(new)
        np.testing.assert_allclose(found["fre"], expected["fre"], rtol=1e-4)
        # folds follow contents, of files or of pixels, and held-out averages follow folds
        np.testing.assert_allclose(found["anomaly_score"], expected["anomaly_score"], rtol=0.02)
    assert detector.class_names == ("images",)
    assert detector.options.model_name is None


def test_predict_is_the_decision(detector):
    new = pictures(4, 5) + pictures(4, 6, defect=True)
    flags = detector.predict(new)
    assert (flags.dtype, flags.shape) == (np.dtype(bool), (8,))
    assert list(flags) == list(detector.score(new)["is_anomaly"])
    assert flags[4:].all()
    strict = detector.predict(new, fpr=1e-6)
    assert (strict <= flags).all()


def test_labels_make_classes():
    images = pictures(12, 1, shift=-60) + pictures(12, 2, shift=60)
    detector = AnomalyDetector.from_images(images, ["dark"] * 12 + ["light"] * 12, **SMALL)
    assert detector.class_names == ("dark", "light")
    rows = detector.score(pictures(2, 3, shift=-60) + pictures(2, 4, shift=60))
    assert list(rows["predicted_class"]) == ["dark", "dark", "light", "light"]


def test_what_cannot_be_fitted_is_said():
    from_images = AnomalyDetector.from_images
    with pytest.raises(ConfigError, match="3 labels were given for 24 pictures"):
        from_images(GOOD, ["a"] * 3, **SMALL)
    with pytest.raises(ConfigError, match="data is about files"):
        from_images(GOOD, data="folder")
    with pytest.raises(ConfigError, match="augment=auto is tried in a training"):
        from_images(GOOD, augment="auto")
    with pytest.raises(ImageError, match="Row 1: "):
        from_images([GOOD[0], b"noise"], **SMALL)
    with pytest.raises(FitError, match="1 good pictures could be read"):
        from_images(GOOD[:1], **SMALL)
