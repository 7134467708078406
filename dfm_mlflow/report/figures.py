"""Histograms of the scores of a scored test set."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.report.charts import INK, PLAIN, RIGHT, WRONG

_MOST_ROWS, _BINS = 14, 50


def paint_scores(
    figure: Figure, rows: dict[str, pd.DataFrame], threshold: float | None, narrow: bool = False
) -> None:
    """Draw one histogram a row of pictures: right decisions in blue, wrong ones in orange."""
    values = np.concatenate([r["anomaly_score"] for r in rows.values()])
    # the far end of the worst defects must not press all that matters against the left edge
    top = max(float(np.quantile(r["anomaly_score"], 0.99, method="higher")) for r in rows.values())
    top, low = max(top, threshold or top), float(values.min())
    log = low > 0 and top / low > 8
    space = np.geomspace if log else np.linspace
    bins = space(low, top if top > low else low + 1, _BINS)
    if threshold is not None and low < threshold < bins[-1]:  # no bar lies on both sides of it
        bins = np.union1d(bins, np.nextafter(threshold, np.inf))
    axes = np.atleast_1d(figure.subplots(len(rows), 1, sharex=True))
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        scores = np.minimum(row["anomaly_score"].to_numpy(float), bins[-1])
        wrong = row["wrong"]
        kinds = [(wrong.isna(), PLAIN), (wrong == False, RIGHT), (wrong == True, WRONG)]  # noqa: E712
        there = [(scores[mine.to_numpy(bool)], colour) for mine, colour in kinds if mine.any()]
        # one outline a kind: a rectangle a bar would be most of the page
        axis.hist(
            [v for v, _ in there],
            bins,
            stacked=True,
            histtype="stepfilled",
            color=[colour for _, colour in there],
        )
        axis.set_ylim(bottom=0)
        if axis is not axes[-1]:
            axis.tick_params(bottom=False, which="both")
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        if narrow:
            axis.set_title(name, loc="left", fontsize=9, pad=2)
        else:
            axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        if threshold is not None:
            axis.axvline(threshold, color=INK, linestyle=(0, (3, 2)), lw=1)
    if log:
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes[-1].xaxis.set_minor_locator(NullLocator())  # every row would have some thirty
    _explain(axes, threshold, bool(values.max() > top), narrow)


def _explain(axes: np.ndarray, threshold: float | None, cut: bool, narrow: bool) -> None:
    """Name the threshold and the axis."""
    notes = ["anomaly score"]
    if threshold is not None and narrow:
        notes.append(f"dashed: threshold {threshold:.4g}")
    elif threshold is not None:
        axes[0].text(
            threshold,
            1.02,
            f"threshold {threshold:.4g}",
            ha="center",
            va="bottom",
            transform=axes[0].get_xaxis_transform(),
            fontsize=8,
        )
    if cut:
        notes.append("the last bar holds all beyond it")
    axes[-1].set_xlabel((";\n" if narrow else "; ").join(notes))


def score_rows(
    detector: AnomalyDetector, table: pd.DataFrame, name: str
) -> dict[str, pd.DataFrame]:
    """Take the rows of one class: held-out good, test good, each defect (rarest ones together)."""
    mine = detector.classes[detector.class_names.index(name)].calibration
    limit = mine.threshold(detector.options.fpr)
    rows = {
        f"held-out good ({len(mine.scores)})": pd.DataFrame(
            {"anomaly_score": mine.scores, "wrong": mine.scores > limit}
        )
    }
    table = table[(table["category"] == name) | (len(detector.classes) == 1)]
    good = table["label"].isin([GOOD, "unlabelled"])
    labels = list(table.loc[~good, "label"].value_counts().index)
    shown = labels if len(labels) <= _MOST_ROWS else labels[: _MOST_ROWS - 1]
    for label in [GOOD, "unlabelled", *sorted(shown)]:
        _add(rows, "test good" if label == GOOD else label, table[table["label"] == label])
    rest = table[table["label"].isin(set(labels) - set(shown))]
    _add(rows, f"{len(labels) - len(shown)} other defects", rest)
    return rows


def _add(rows: dict[str, pd.DataFrame], name: str, of_kind: pd.DataFrame) -> None:
    if of_kind.empty:
        return
    flagged, bad = of_kind["is_anomaly"].astype(bool), of_kind["defective"]
    wrong = (flagged != bad).astype(object).where(bad.notna(), None)
    shown = name if len(name) <= 28 else name[:27] + "…"
    while f"{shown} ({len(of_kind)})" in rows:  # long names may begin alike
        shown += "'"
    rows[f"{shown} ({len(of_kind)})"] = pd.DataFrame(
        {"anomaly_score": of_kind["anomaly_score"], "wrong": wrong}
    )
