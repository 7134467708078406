from types import SimpleNamespace

import numpy as np

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.detector.calibrated import CalibratedClasses


def test_the_smallest_class_says_what_is_promised_and_each_has_its_threshold():
    known = CalibratedClasses()
    known.options = SimpleNamespace(fpr=0.01)
    scores = {"cap": np.arange(9.0), "nut": np.arange(100, 199.0)}
    known.classes = tuple(
        SimpleNamespace(name=name, calibration=Calibration.of(values, 3))
        for name, values in scores.items()
    )
    assert known.class_names == ("cap", "nut")
    assert known.effective_fpr() == known.promised_fpr() == 1 / 10
    assert known.effective_fpr(0.2) == 0.2
    assert known.thresholds(0.1) == {c.name: c.calibration.threshold(0.1) for c in known.classes}
