"""Curves of a scored test set, as PNG files."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from dfm_mlflow.images.catalog import GOOD


def draw_histogram(
    path: Path, held_out: np.ndarray, table: pd.DataFrame, thresholds: dict[str, float]
) -> None:
    """Draw the scores of held-out good, test good and defective images with the threshold."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    shown = {"held-out good": held_out}
    if len(table):
        for label in [GOOD, *sorted(set(table["label"]) - {GOOD})]:
            values = table.loc[table["label"] == label, "anomaly_score"].to_numpy()
            if len(values):
                shown["test good" if label == GOOD else label] = values
    top = max(float(np.quantile(v, 0.98)) for v in shown.values())
    bins = np.linspace(min(v.min() for v in shown.values()), top, 40)
    for name, values in shown.items():
        axes.hist(np.minimum(values, top), bins, density=True, histtype="step", label=name, lw=1.5)
    for name, value in thresholds.items():
        label = "threshold" if len(thresholds) == 1 else f"threshold {name}"
        axes.axvline(min(value, top), color="black", linestyle="--", lw=1, label=label)
    axes.set(xlabel="anomaly score", ylabel="density")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_p_values(path: Path, table: pd.DataFrame, promised: float) -> None:
    """Draw the p-values of good or unlabelled images, which are uniform where nothing changed."""
    good = table[table["label"].isin([GOOD, "unlabelled"])]
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(good["p_value"].astype(float), np.linspace(0, 1, 21), density=True, alpha=0.7)
    axes.axhline(1, color="black", lw=1, label="good images of the calibration")
    axes.axvline(promised, color="red", linestyle="--", lw=1, label="flagged up to here")
    kind = "unlabelled" if (good["label"] == "unlabelled").any() else "good test"
    axes.set(xlabel=f"p-value of {len(good)} {kind} images", ylabel="density", xlim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path, table: pd.DataFrame) -> None:
    """Draw the ROC and the precision-recall curve."""
    truth, scores = table["defective"].to_numpy(bool), table["anomaly_score"].to_numpy()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    false_rate, true_rate, _ = roc_curve(truth, scores)
    left.plot(false_rate, true_rate)
    left.set(xlabel="false-positive rate", ylabel="recall", title="ROC")
    precision, recall, _ = precision_recall_curve(truth, scores)
    right.plot(recall, precision)
    right.set(xlabel="recall", ylabel="precision", title="precision-recall", ylim=(0, 1.02))
    figure.savefig(path, dpi=110)
