"""Curves of a scored test set, with the point where the threshold works."""

from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.special import betaincinv

from dfm_mlflow.core.ranking import precision_recall_curve, roc_curve
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.report.charts import PLAIN, RIGHT, WRONG

_MOST_LINES = 6


def paint_roc(figure: Figure, table: pd.DataFrame, metrics: dict[str, float]) -> None:
    """Draw the ROC curve with the point where the threshold works."""
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=PLAIN, lw=0.8, linestyle=":")
    for label, style, truth, scores in _lines(table):
        false_rate, true_rate = roc_curve(truth, scores)
        axes.plot(false_rate, true_rate, label=label, **style)
    if "recall" in metrics and "false_positive_rate" in metrics:
        _mark_threshold(axes, metrics["false_positive_rate"], metrics["recall"])
    axes.set(
        xlabel="false-positive rate",
        ylabel="recall",
        title=f"ROC, AUROC {metrics['image_auroc']:.3f}",
    )
    _frame(axes, "lower right")


def paint_precision_recall(figure: Figure, table: pd.DataFrame, metrics: dict[str, float]) -> None:
    """Draw the precision-recall curve with the point where the threshold works."""
    axes = figure.add_subplot()
    for label, style, truth, scores in _lines(table):
        precision, recall = precision_recall_curve(truth, scores)
        axes.plot(recall, precision, label=label, **style)
    if "recall" in metrics and "precision" in metrics:
        _mark_threshold(axes, metrics["recall"], metrics["precision"])
    area = metrics["image_average_precision"]
    axes.set(xlabel="recall", ylabel="precision", title=f"precision-recall, AP {area:.3f}")
    _frame(axes, "lower left")


def _mark_threshold(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", color=WRONG, clip_on=False, zorder=5, label="at the threshold")


def _lines(table: pd.DataFrame) -> list[tuple[str, dict[str, Any], np.ndarray, np.ndarray]]:
    """All pictures, and beneath them each of a few categories."""
    lines = []
    several = table["category"].nunique()
    if 1 < several <= _MOST_LINES:
        colours = mpl.color_sequences["Dark2"]
        for colour, (name, rows) in zip(colours, table.groupby("category"), strict=False):
            if rows["defective"].nunique() == 2:
                style = {"color": colour, "lw": 1, "alpha": 0.8}
                lines.append(("category " + str(name)[:24], style, rows))
    lines.append(("all" if several > 1 else "model", {"color": RIGHT, "lw": 2}, table))
    return [
        (label, style, rows["defective"].to_numpy(bool), rows["anomaly_score"].to_numpy())
        for label, style, rows in lines
    ]


def paint_promise(figure: Figure, detector: AnomalyDetector, table: pd.DataFrame) -> None:
    """Draw the measured over the promised false-positive rate, with what chance allows."""
    p_values = np.sort(table["p_value"].to_numpy(float))
    n, held_out = len(p_values), min(c.calibration.n_groups for c in detector.classes) + 1
    promised = np.linspace(0, 1, 201)
    # The count is beta-binomial; a beta distribution of its mean and variance is as good here, and
    # fast for any number of pictures.
    weight = max(n * (held_out + 1) / (held_out + n) - 1, 0.5)
    inner = np.clip(promised, 1e-6, 1 - 1e-6)
    likely = partial(betaincinv, inner * weight, (1 - inner) * weight)
    axes = figure.add_subplot()
    axes.fill_between(
        promised,
        likely(0.025),
        likely(0.975),
        color=PLAIN,
        alpha=0.3,
        lw=0,
        label="95 % of chance",
    )
    axes.plot([0, 1], [0, 1], color=PLAIN, lw=0.8, linestyle=":")
    measured = np.searchsorted(p_values, promised + 1e-12, side="right") / n
    axes.step(promised, measured, where="post", color=RIGHT, lw=2, label=f"{n} pictures")
    works = detector.effective_fpr()
    _mark_threshold(axes, works, float(np.mean(p_values <= works + 1e-12)))
    unlabelled = (table["label"] != GOOD).any()
    axes.set(
        xlabel="promised false-positive rate",
        title="promised and measured",
        ylabel="flagged" if unlabelled else "measured on good pictures",
    )
    _frame(axes, "lower right")


def _frame(axes: Axes, where: Literal["lower left", "lower right"]) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(loc=where)
