import pandas as pd

from dfm_mlflow.scores.before_after import compare_models

from ..detectors import fit, pictures


def scored(scores, flags):
    return pd.DataFrame(
        {
            "category": "stripes",
            "defective": [False, False, True, True],
            "anomaly_score": scores,
            "is_anomaly": flags,
            "error": None,
        }
    )


def test_two_models_are_held_against_each_other():
    old, new = fit({"stripes": pictures(20)}), fit({"stripes": pictures(25)})
    before = scored([1.0, 3.0, 2.0, 4.0], [False, True, False, True])
    now = scored([1.0, 2.0, 3.0, 4.0], [False, False, True, True])
    sentence, figures = compare_models("The new model", old, new, before, now)
    assert sentence.startswith(
        "The new model flags 2 of 2 defective pictures (before, 1) and flags 0 of 2 good pictures "
        "(before, 1); AUROC 1.000 against 0.750"
    )
    assert figures["auroc_difference"] == 0.25
    assert f"stripes {new.thresholds()['stripes']:.4g} (was " in sentence
    nothing, _ = compare_models("It", old, new, before[:0], now[:0])
    assert "thresholds alone can be compared" in nothing
    broken = now.assign(error=[None, "no picture", None, None])
    assert "0 of 1 good pictures" in compare_models("It", old, new, before, broken)[0]
