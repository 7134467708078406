import pandas as pd
from scipy.stats import binomtest

from dfm_mlflow.report.words import masks, rates
from dfm_mlflow.scores.verdict import percent


def frame(good, good_flagged, bad, bad_flagged):
    return pd.DataFrame(
        {
            "category": "a",
            "label": ["good"] * good + ["x"] * bad,
            "defective": [False] * good + [True] * bad,
            "is_anomaly": [i < good_flagged for i in range(good)]
            + [i < bad_flagged for i in range(bad)],
            "predicted_class": "stripes",
            "p_value": 0.5,
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
    assert "broken" in rates(detector, frame(40, 30, 1, 1))[0]["judgement"]


def test_defects_without_a_mask_are_counted_in_words():
    table = frame(3, 0, 6, 2)
    assert masks({"pixel_auroc": 0.9, "n_without_mask": 0.0}, table) is None
    said = masks({"pixel_auroc": 0.9, "n_without_mask": 2.0}, table)
    assert said == "2 of 6 defective pictures have no mask and are left out of the pixel metrics."
    assert "None of the 6 defective pictures has a mask" in masks({}, table)
    assert masks({}, frame(3, 0, 0, 0)) is None
