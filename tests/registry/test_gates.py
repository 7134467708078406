"""What ranks well passes, mean over categories; golden pictures are tested in test_golden."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.registry.gates import metrics_gate

from ..detectors import fit


def options(**given):
    return PromoteOptions.parse({"model": "m", "version": "1", "to": "production"} | given)


def scored(rng, lift, category="a", n=40):
    bad = np.arange(n) % 2 == 0
    return pd.DataFrame(
        {
            "category": category,
            "defective": bad,
            "anomaly_score": rng.normal(size=n) + lift * bad,
        }
    )


def test_auroc_is_the_mean_over_categories_whatever_their_scales():
    rng = np.random.default_rng(0)
    parts = [scored(rng, 1.0), scored(rng, 2.0, "b")]
    parts[1]["anomaly_score"] = 1000 + parts[1]["anomaly_score"]
    table = pd.concat(parts)
    expected = np.mean([auroc(p["defective"].to_numpy(bool), p["anomaly_score"]) for p in parts])
    asked = options(min_auroc=f"{expected - 1e-6}"), options(min_auroc=f"{expected + 1e-6}")
    found = [metrics_gate(SimpleNamespace(metrics={}), o, table, "these") for o in asked]
    assert [gate.passed for gate in found] == [True, False]
    assert found[0].figures["image_auroc"] == pytest.approx(expected)
    assert "accept a lower one" in found[1].sentence


def test_without_defects_the_promise_on_good_pictures_counts():
    detector = fit(fpr="0.1")
    candidate = SimpleNamespace(metrics={"threshold": 1.0}, detector=detector, name="m")
    good = scored(np.random.default_rng(1), 0).query("not defective")
    for most, passes in ((0.2, True), (0.05, False)):
        gate = metrics_gate(candidate, options(max_fpr=str(most)), good, "these")
        assert gate.passed == passes
        assert gate.figures == {"effective_fpr": detector.effective_fpr()}
    assert not metrics_gate(SimpleNamespace(metrics={}, name="m"), options(), None, "").passed
