import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dfm_mlflow.report.figures import paint_scores, score_rows
from dfm_mlflow.scores.evaluation import score_items

from .conftest import items_in


def rows_of(scores, threshold, truth):
    return pd.DataFrame({"anomaly_score": scores, "wrong": (scores > threshold) != truth})


@pytest.mark.parametrize("factor", [1, 1e6, 1e-9])
def test_no_bar_lies_on_both_sides_of_the_threshold(factor):
    rng, threshold = np.random.default_rng(0), 2.5 * factor
    scores = rng.lognormal(0.5, 1, 200) * factor
    figure = Figure()
    paint_scores(figure, {"good": rows_of(scores, threshold, False)}, threshold)
    (axes,) = figure.axes
    assert len(axes.patches) == 2  # one outline of right ones, one of wrong ones
    for patch in axes.patches:
        edges = np.unique(patch.get_path().vertices[:, 0])
        assert np.abs(edges / threshold - 1).min() < 1e-9


def test_scores_that_are_all_alike_are_drawn_too():
    for scores in ([3.0], [0.0, 0.0], [-1.0, -1.0]):
        for threshold in (None, 3.0):
            row = pd.DataFrame({"anomaly_score": scores, "wrong": None})
            paint_scores(Figure(), {"one": row}, threshold)


def test_rows_hold_each_picture_once_and_the_rarest_defects_together(detector, tmp_path):
    table = score_items(detector, items_in(tmp_path), None).table
    kinds = [f"defect {i:02d}" for i in range(20)]
    many = pd.concat([table] * 10, ignore_index=True)
    defective = many["defective"].astype(bool)
    many.loc[defective, "label"] = [kinds[i % 20] for i in range(defective.sum())]
    rows = score_rows(detector, many, "stripes")
    held_out, *rest = rows
    assert held_out == "held-out good (30)"
    assert rest[0] == "test good (60)"
    assert [name for name in rest if "other defects" in name] == ["7 other defects (21)"]
    assert sum(len(rows[name]) for name in rest) == len(many)
    flagged = many["is_anomaly"].astype(bool)
    wrong = sum(int(rows[name]["wrong"].sum()) for name in rest)
    assert wrong == int((flagged != defective).sum())
    unlabelled = many.assign(label="unlabelled", defective=None)
    found = score_rows(detector, unlabelled, "stripes")["unlabelled (120)"]
    assert found["wrong"].isna().all()
