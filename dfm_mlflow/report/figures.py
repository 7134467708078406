"""Charts of a scored test set: as PNG files, and as SVG that takes the colour of its page."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve, roc_curve

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

# Of text and axes: near black on a white PNG, the page's own colour in SVG.
_INK = "#1f2933"
_RIGHT, _WRONG, _PLAIN = "#3b82c4", "#e8710a", "#8a94a3"  # told apart on white and on black
_STYLE: dict[Any, Any] = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a defect may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "dfm",
}
_MOST_ROWS, _MOST_LINES, _BINS = 14, 6, 50


class Charts:
    """Draws figures into a folder, and keeps each as SVG for the page.

    Parameters
    ----------
    folder : Path
        Where the PNG files go.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def draw(self, name: str, size: tuple[float, float], paint: Callable[[Figure], Any]) -> str:
        """Draw one figure: ``<name>.png`` is written, SVG for inside a page comes back.

        Parameters
        ----------
        name : str
            Of the file, and in front of the identifiers inside the SVG.
        size : tuple of float
            Width and height in inches.
        paint : callable
            Draws on the figure that it is given.

        Returns
        -------
        str
        """
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            paint(figure)
            figure.draw_without_rendering()  # lays it out, once for both files
            figure.set_layout_engine("none")
            figure.savefig(self._folder / f"{name}.png", dpi=120)
            buffer = io.StringIO()
            plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", transparent=True, metadata=plain)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
        # it takes the width of its place; a name of the font would be the drawing machine's
        svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[\d.]+pt"', r"<svg \1", svg, count=1)
        svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[\d.]+pt"', r"<svg \1", svg, count=1)
        svg = re.sub(r"(font: [^'\";]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
        svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)  # by 3.11
        # millionths of a point are a third of the bytes
        svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]), svg)
        # identifiers of one drawing must not meet those of another on the same page
        return re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", svg)


def paint_scores(figure: Figure, rows: dict[str, pd.DataFrame], threshold: float | None) -> None:
    """Draw one histogram a row of pictures: right decisions in blue, wrong ones in orange.

    Parameters
    ----------
    figure : Figure
    rows : dict of str to DataFrame
        ``anomaly_score`` and ``wrong`` (None where unknown) of each row, by its title.
    threshold : float, optional
        Of the decision.
    """
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
        kinds = [(wrong.isna(), _PLAIN), (wrong == False, _RIGHT), (wrong == True, _WRONG)]  # noqa: E712
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
        axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        if threshold is not None:
            axis.axvline(threshold, color=_INK, linestyle=(0, (3, 2)), lw=1)
    if log:
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes[-1].xaxis.set_minor_formatter(NullFormatter())
    if threshold is not None:
        axes[0].text(
            threshold,
            1.02,
            f"threshold {threshold:.4g}",
            ha="center",
            va="bottom",
            transform=axes[0].get_xaxis_transform(),
            fontsize=8,
        )
    beyond = "; the last bar holds all beyond it" if values.max() > top else ""
    axes[-1].set_xlabel(f"anomaly score{beyond}")


def score_rows(
    detector: AnomalyDetector, table: pd.DataFrame, name: str
) -> dict[str, pd.DataFrame]:
    """Take the rows of one class: held-out good, test good, each defect (rarest ones together).

    Parameters
    ----------
    detector : AnomalyDetector
    table : DataFrame
        Of an :class:`Evaluation`, without rows that have an error.
    name : str
        Of the class.

    Returns
    -------
    dict of str to DataFrame
        ``anomaly_score`` and ``wrong`` (None where unknown) of each row, by its title.
    """
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


def paint_roc(figure: Figure, table: pd.DataFrame, metrics: dict[str, float]) -> None:
    """Draw the ROC curve with the point where the threshold works.

    Parameters
    ----------
    figure : Figure
    table : DataFrame
        Of an :class:`Evaluation`, without rows that have an error.
    metrics : dict of str to float
        Of these pictures; ``image_auroc`` must be there.
    """
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_PLAIN, lw=0.8, linestyle=":")
    for label, style, truth, scores in _lines(table):
        false_rate, true_rate, _ = roc_curve(truth, scores)
        axes.plot(false_rate, true_rate, label=label, **style)
    if "recall" in metrics and "false_positive_rate" in metrics:
        axes.plot(
            metrics["false_positive_rate"],
            metrics["recall"],
            "o",
            color=_WRONG,
            clip_on=False,
            zorder=5,
            label="at the threshold",
        )
    axes.set(
        xlabel="false-positive rate",
        ylabel="recall",
        title=f"ROC, AUROC {metrics['image_auroc']:.3f}",
    )
    _frame(axes, "lower right")


def paint_precision_recall(figure: Figure, table: pd.DataFrame, metrics: dict[str, float]) -> None:
    """Draw the precision-recall curve with the point where the threshold works.

    Parameters
    ----------
    figure : Figure
    table : DataFrame
        Of an :class:`Evaluation`, without rows that have an error.
    metrics : dict of str to float
        Of these pictures; ``image_average_precision`` must be there.
    """
    axes = figure.add_subplot()
    for label, style, truth, scores in _lines(table):
        precision, recall, _ = precision_recall_curve(truth, scores)
        axes.plot(recall, precision, label=label, **style)
    if "recall" in metrics and "precision" in metrics:
        axes.plot(
            metrics["recall"],
            metrics["precision"],
            "o",
            color=_WRONG,
            clip_on=False,
            zorder=5,
            label="at the threshold",
        )
    area = metrics["image_average_precision"]
    axes.set(xlabel="recall", ylabel="precision", title=f"precision-recall, AP {area:.3f}")
    _frame(axes, "lower left")


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
    lines.append(("all" if several > 1 else "model", {"color": _RIGHT, "lw": 2}, table))
    return [
        (label, style, rows["defective"].to_numpy(bool), rows["anomaly_score"].to_numpy())
        for label, style, rows in lines
    ]


def paint_promise(figure: Figure, detector: AnomalyDetector, table: pd.DataFrame) -> None:
    """Draw the measured over the promised false-positive rate, with what chance allows.

    Parameters
    ----------
    figure : Figure
    detector : AnomalyDetector
    table : DataFrame
        Rows of good, or of unlabelled, pictures.
    """
    p_values = np.sort(table["p_value"].to_numpy(float))
    n, held_out = len(p_values), min(len(c.calibration.scores) for c in detector.classes) + 1
    promised = np.linspace(0, 1, 201)
    # The count is beta-binomial; a beta distribution of its mean and variance is as good here, and
    # fast for any number of pictures.
    weight = max(n * (held_out + 1) / (held_out + n) - 1, 0.5)
    inner = np.clip(promised, 1e-6, 1 - 1e-6)
    chance = beta(inner * weight, (1 - inner) * weight)
    axes = figure.add_subplot()
    axes.fill_between(
        promised,
        chance.ppf(0.025),
        chance.ppf(0.975),
        color=_PLAIN,
        alpha=0.3,
        lw=0,
        label="95 % of chance",
    )
    axes.plot([0, 1], [0, 1], color=_PLAIN, lw=0.8, linestyle=":")
    measured = np.searchsorted(p_values, promised + 1e-12, side="right") / n
    axes.step(promised, measured, where="post", color=_RIGHT, lw=2, label=f"{n} pictures")
    works = detector.effective_fpr()
    axes.plot(
        works,
        np.mean(p_values <= works + 1e-12),
        "o",
        color=_WRONG,
        clip_on=False,
        zorder=5,
        label="at the threshold",
    )
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
