"""Which false-positive rate? A table and a chart of what each would find and flag in vain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.report.charts import INK, PLAIN, RIGHT, WRONG, Charts
from dfm_mlflow.scores.operating_points import (
    OperatingPoint,
    cheapest,
    cost_sentence,
    costs_of,
    flagged_at,
    operating_points,
)
from dfm_mlflow.scores.verdict import percent

_LARGEST = 0.3  # rate of the chart


def which_rate(
    folder: Path, detector: AnomalyDetector, table: pd.DataFrame, drawn: np.ndarray | None = None
) -> dict[str, Any] | None:
    """Give the rows, the chart and the sentence of the report's section."""
    points = operating_points(detector, table, drawn)
    costs = costs_of(detector.options)
    best = cheapest(points, costs)
    rows = [
        {
            "fpr": f"{p.fpr:g}",
            "current": p.current,
            "cheapest": p is best,
            "promised": percent(p.promised),
            "threshold": f"{max(p.thresholds.values()):.4g}",
            "good": _good(p),
            "found": _found(p),
            "cost": "" if costs is None or (c := p.cost(costs)) is None else f"{100 * c:.3g}",
        }
        for p in points
    ]
    chart = None
    if any(p.good or p.recall is not None for p in points):

        def paint(figure: Figure) -> None:
            paint_rates(figure, detector, table, drawn, points)

        chart = Markup(Charts(folder).draw("which_rate", (4.6, 3.2), paint))
    return {
        "rows": rows,
        "chart": chart,
        "sentence": cost_sentence(points, costs),
        "several": len(detector.classes) > 1,
        "costs": any(row["cost"] for row in rows),
        "drawn": any(p.drawn for p in points) and not any(p.defective for p in points),
    }


def _good(p: OperatingPoint) -> str:
    if p.interval is None:
        return "no good test pictures"
    low, high = p.interval
    return f"{p.good_flagged} of {p.good} ({percent(low)} to {percent(high)})"


def _found(p: OperatingPoint) -> str:
    if p.recall is None:
        return "no defects to find"
    kind, found, n = "", p.found, p.defective
    if not p.defective:
        kind, found, n = " drawn ones", p.drawn_found, p.drawn
    return f"{found} of {n}{kind} ({percent(p.recall)})"


def paint_rates(
    figure: Figure,
    detector: AnomalyDetector,
    table: pd.DataFrame,
    drawn: np.ndarray | None,
    points: Sequence[OperatingPoint],
) -> None:
    """Draw what is found and what is flagged in vain over the target rate, and mark the current."""
    now = next(p for p in points if p.current)
    rates = np.geomspace(min(points[0].fpr, now.fpr) / 2, max(_LARGEST, now.fpr), 120)
    axes = figure.add_subplot()
    bad = (table["defective"] == True).to_numpy(bool)  # noqa: E712  # None where nothing is known
    good = (table["defective"] == False).to_numpy(bool)  # noqa: E712
    flagged = flagged_at(detector, table, rates)
    kinds = [
        (flagged[:, bad], "defects found", RIGHT, now.found / max(now.defective, 1)),
        (flagged[:, good], "good pictures flagged", WRONG, now.good_flagged / max(now.good, 1)),
    ]
    if drawn is not None and not bad.any():
        found = np.stack([is_anomaly(drawn, rate) for rate in rates])
        kinds.append((found, "drawn defects found", RIGHT, now.drawn_found / now.drawn))
    for rows, label, colour, share in kinds:
        if rows.shape[1]:
            axes.step(rates, rows.mean(axis=1), where="post", color=colour, lw=2, label=label)
            axes.plot(now.fpr, share, "o", color=colour, clip_on=False, zorder=5)
    axes.plot(rates, rates, color=PLAIN, lw=0.8, linestyle=":", label="as promised")
    axes.axvline(now.fpr, color=INK, linestyle=(0, (3, 2)), lw=1, label=f"fpr={now.fpr:g} now")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="target false-positive rate", xlim=rates[[0, -1]])
    shown = [rate for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if rates[0] <= rate <= rates[-1]]
    axes.set_xticks(shown, minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
