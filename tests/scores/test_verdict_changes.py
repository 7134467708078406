import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.data.learned import Change
from dfm_mlflow.data.verdicts import PictureVerdict
from dfm_mlflow.scores.verdict_changes import (
    Said,
    change_table,
    changes_sentence,
    hard_ones_sentence,
    said_of_scored,
    said_while_held_out,
)

from ..detectors import fit, pictures


def change(i, verdict, before="new", after="training"):
    said = PictureVerdict(str(i), verdict, who="ann") if verdict else None
    return Change(str(i), f"/p/{i}", "caps", said, before, after)


def test_each_verdict_stands_beside_what_both_models_say():
    before = {"0": Said(9.0, 0.01, True), "1": Said(1.0, 0.5, False, held_out=False)}
    now = {"0": Said(2.0, 0.3, False), "1": Said(8.0, 0.01, True), "2": Said(1.0, 0.9, False)}
    table = change_table(
        [
            change(0, "good"),
            change(1, "bad", "training", "test: hole"),
            change(2, "good"),
            change(3, None, "training", "removed"),
        ],
        before,
        now,
    )
    assert list(table["verdict"]) == ["good", "bad", "good", "removed"]
    assert list(table["is_anomaly_before"]) == [True, False, None, None]
    assert list(table["was"]) == ["new", "training", "new", "training"]
    assert changes_sentence(table) == (
        "Of 1 pictures that were called good, 1 were flagged before and 0 are now; of 1 pictures "
        "that were called bad, 0 were flagged before and 1 are now (the model before was fitted to "
        "1 of them, and scores those lower than new ones)."
    )
    assert changes_sentence(change_table([], {}, {})) == ""
    assert changes_sentence(table[table["verdict"] == "removed"]) == ""


def test_held_out_pictures_are_flagged_as_new_ones_of_their_p_value_would_be():
    detector = fit({"stripes": pictures(30)}, fpr="0.1")
    promise = detector.effective_fpr()
    scores = pd.DataFrame(
        {
            "path": list("abc"),
            "category": ["stripes", "stripes", "other"],
            "held_out_score": [9.0, 1.0, 1.0],
            "p_value": [promise, promise + 0.01, 0.01],
            "used": True,
        }
    )
    said = said_while_held_out(detector, scores)
    assert {key: one.is_anomaly for key, one in said.items()} == {"a": True, "b": False}


def test_scores_are_taken_by_path_and_errors_left_out():
    table = pd.DataFrame(
        {
            "path": list("ab"),
            "anomaly_score": [1.5, None],
            "p_value": [0.2, None],
            "is_anomaly": [False, None],
            "error": [None, "broken"],
        }
    )
    assert said_of_scored(table, frozenset("a")) == {"a": Said(1.5, 0.2, False, held_out=False)}
    assert said_of_scored(pd.DataFrame()) == {}
    with pytest.raises(KeyError):
        said_of_scored(table.drop(columns="p_value"))


def joining(p_values, before="new"):
    changes = [change(i, "good", before) for i in range(len(p_values))]
    said = {str(i): Said(1.0, float(p), p < 0.05) for i, p in enumerate(p_values)}
    return change_table(changes, said, {})


def test_a_set_that_grows_by_its_hardest_pictures_is_named():
    rng = np.random.default_rng(5)

    def drawn(n, m, below=1.0):  # p-values of n pictures among m, and of them those in a band
        scores = rng.normal(size=m)
        p = (1 + (scores >= rng.normal(size=(n, 1))).sum(axis=1)) / (m + 1)
        return p[p <= below]

    assert "p-values of 0.0" in hard_ones_sentence(joining(drawn(300, 40, 0.05)), 40)
    assert hard_ones_sentence(joining(drawn(80, 100, 0.5)), 100)
    said = [bool(hard_ones_sentence(joining(drawn(40, 40)), 40)) for _ in range(300)]
    assert np.mean(said) < 0.02  # as they come
    assert not hard_ones_sentence(joining(drawn(2000, 2000, 0.9)), 2000)
    assert not hard_ones_sentence(joining([0.025]), 40)  # one says nothing
    assert not hard_ones_sentence(joining([0.01] * 20, "training"), 40)
    assert not hard_ones_sentence(change_table([], {}, {}), 40)
