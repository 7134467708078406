import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from dfm_mlflow.report.words import chance_of, percent, rates, verdict
from dfm_mlflow.scores.evaluation import measured_sentence


def frame(good, good_flagged, bad, bad_flagged):
    return pd.DataFrame(
        {
            "category": "a",
            "label": ["good"] * good + ["x"] * bad,
            "defective": [False] * good + [True] * bad,
            "is_anomaly": [i < good_flagged for i in range(good)]
            + [i < bad_flagged for i in range(bad)],
            "error": None,
        }
    )


def test_rates_say_what_was_counted(detector):
    table = frame(40, 3, 20, 18)
    overkill, escapes = rates(detector, table)
    assert overkill["measured"] == "3 of 40, 7.50\u00a0%"
    assert escapes["measured"] == "2 of 20, 10.0\u00a0%"
    interval = binomtest(3, 40).proportion_ci(method="exact")
    assert overkill["interval"] == f"{percent(interval.low)} to {percent(interval.high)}"
    assert overkill["judgement"] == "kept"
    assert "no promise" in escapes["promised"]
    said = verdict(detector, table, {"image_auroc": 0.9})
    assert "finds 18 of 20 defective pictures, flags 3 of 40 good ones" in said
    assert said.count(".") - len(re.findall(r"\d\.\d", said)) == 1  # one sentence
    assert "broken" in rates(detector, frame(40, 30, 1, 1))[0]["judgement"]
    assert measured_sentence(detector, table)[0].startswith("On 40 good test pictures 3")


def test_the_chance_is_that_of_exchangeable_pictures(detector):
    """Rank 40 new among 30 held-out scores, all alike in law, as often as it takes."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 70))
    limit = np.sort(scores[:, :30], axis=1)[:, -3]  # the third of 30: p <= 3/31 above it
    counts = (scores[:, 30:] > limit[:, None]).sum(axis=1)
    for k in (1, 4, 8):
        assert (counts >= k).mean() == pytest.approx(chance_of(detector, k, 40), abs=0.04)
