"""Curves go through the point where the threshold works."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.report.curves import paint_precision_recall, paint_promise, paint_roc
from dfm_mlflow.scores.evaluation import image_metrics, score_items

from .conftest import items_in


@pytest.fixture
def table(detector, tmp_path):
    return score_items(detector, items_in(tmp_path, n=12), None).table


def lines_of(paint, *args):
    figure = Figure()
    paint(figure, *args)
    (axes,) = figure.axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    return axes, curves, points


def test_roc_and_precision_recall_go_through_the_operating_point(table):
    metrics = image_metrics(table)
    for paint in (paint_roc, paint_precision_recall):
        _, (curve,), (point,) = lines_of(paint, table, metrics)
        x, y = float(point.get_xdata()[0]), float(point.get_ydata()[0])
        near = np.abs(np.asarray(curve.get_xdata()) - x) < 1e-9
        heights = np.asarray(curve.get_ydata())[near]
        assert heights.min() - 1e-9 <= y <= heights.max() + 1e-9


def test_the_measured_rate_is_that_of_the_p_values(detector, table):
    good = table[table["label"] == GOOD]
    _, (curve,), (point,) = lines_of(paint_promise, detector, good)
    rate = detector.effective_fpr()
    assert float(point.get_xdata()[0]) == rate
    assert float(point.get_ydata()[0]) == pytest.approx((good["p_value"] <= rate + 1e-12).mean())
    assert np.asarray(curve.get_ydata())[-1] == 1
