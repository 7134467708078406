import logging
import re

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.core.operating_point import Costs
from dfm_mlflow.scores.operating_points import operating_points
from dfm_mlflow.scores.verdict import Verdict, percent, said_rate, say, verdict_of

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit({"stripes": pictures(40)}, fpr="0.05")


def frame(detector, good, good_flagged, bad, found, near=0):
    """So many good and defective pictures, of which so many are flagged, and some nearly."""
    p = [0.01] * good_flagged + [0.9] * (good - good_flagged)
    p += [0.01] * found + [0.08] * near + [0.9] * (bad - found - near)
    p = np.array(p)
    return pd.DataFrame(
        {
            "category": "stripes",
            "label": ["good"] * good + ["hole"] * bad,
            "defective": [False] * good + [True] * bad,
            "p_value": p,
            "predicted_class": "stripes",
            "is_anomaly": p <= detector.effective_fpr(),
        }
    )


def test_it_leads_with_what_is_decided(detector):
    said = verdict_of(detector, frame(detector, 40, 2, 20, 18), {"image_auroc": 0.99})
    assert said.concerns == ()
    assert said.text.startswith(
        "The model finds 18 of 20 defective pictures (recall 0.90) and flags 2 of 40 good ones "
        f"(estimated: {said_rate(detector)}) at the threshold "
    )
    assert said.text.index("AUROC of 0.990") > said.text.index("flags 2 of 40")
    assert said.text.count(".") - len(re.findall(r"\d\.\d", said.text)) == 1  # one sentence


def test_a_model_that_ranks_well_and_finds_nothing_is_a_concern_with_a_remedy(detector):
    table = frame(detector, 40, 0, 40, 0, near=31)
    (concern,) = verdict_of(detector, table, {"image_auroc": 0.988}).concerns
    assert concern == (
        "Recall is 0.00 (0 of 40 defective pictures) although AUROC is 0.988: at fpr 0.1 it would "
        "find 31 of 40."
    )
    (concern,) = verdict_of(detector, frame(detector, 40, 0, 40, 3), {"image_auroc": 0.95}).concerns
    assert "no fpr up to 0.1 finds more; look at the training pictures" in concern
    assert verdict_of(detector, table, {"image_auroc": 0.7}).concerns == ()  # it does not rank well


def test_a_promise_that_is_broken_beyond_chance_is_a_concern(detector):
    for flagged, broken in ((2, False), (5, False), (20, True)):
        table = frame(detector, 40, flagged, 4, 4)
        concerns = verdict_of(detector, table, {"image_auroc": 0.9}).concerns
        assert bool(concerns) == broken, flagged
    assert "20 of 40 good pictures are flagged where 5.00\u00a0% is estimated" in concerns[0]
    assert "recalibrate on new ones" in concerns[0]


def test_a_rate_that_so_few_pictures_cannot_promise_is_a_concern():
    few = fit({"stripes": pictures(12)}, fpr="0.01")
    (concern,) = verdict_of(
        few,
        pd.DataFrame({"defective": []}).assign(
            p_value=[], predicted_class=[], category=[], label=[], is_anomaly=[]
        ),
        {"n_train": 12},
    ).concerns
    assert "collect at least 99 good pictures to use fpr=0.01" in concern
    assert "12 good pictures can promise" in concern


def test_concerns_of_the_training_pictures_are_taken_over(detector):
    further = ["normal-17.jpg alone sets the threshold (23.4; without it 10.9): look at it."]
    found = verdict_of(detector, frame(detector, 9, 0, 9, 9), {"image_auroc": 1.0}, None, further)
    assert found.concerns == tuple(further)
    assert found.text.startswith(further[0])


def test_without_labels_or_pictures_it_says_what_is_not_known(detector):
    table = frame(detector, 5, 1, 5, 3)
    blind = verdict_of(detector, table.assign(label="unlabelled", defective=None), {})
    assert "flags 4 of 10 unlabelled pictures" in blind.sentence
    nothing = verdict_of(detector, table[:0], {"n_train": 40.0})
    assert "fitted to 40 good pictures" in nothing.sentence
    assert "nothing is known of the defects" in nothing.sentence
    good = verdict_of(detector, table[:5], {})
    assert "no defective picture to rank against" in good.sentence
    bad = verdict_of(detector, table[5:], {})
    assert "no good picture to rank against" in bad.sentence


def test_a_concern_is_logged_as_a_warning_with_the_table_of_rates(detector, caplog):
    caplog.set_level(logging.INFO)
    points = operating_points(detector, frame(detector, 40, 0, 40, 0, near=31))
    for verdict, level in (
        (Verdict("Fine."), "INFO"),
        (Verdict("x.", ("Recall is 0.",)), "WARNING"),
    ):
        caplog.clear()
        say(logging.getLogger("any"), verdict, points, Costs(50, 2, 0.01))
        assert (caplog.records[0].levelname, caplog.records[0].message) == (level, verdict.text)
        assert "31 of 40" in caplog.text
        assert "is the cheapest of these rates" in caplog.text


def test_shares_are_written_for_people():
    assert [percent(s) for s in (0, 0.0125, 0.5, 1)] == [
        "0\u00a0%",
        "1.25\u00a0%",
        "50.0\u00a0%",
        "100\u00a0%",
    ]
    assert percent(1e-9) == "less than 0.01\u00a0%"
