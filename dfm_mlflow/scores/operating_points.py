"""What a detector decides at each of several target false-positive rates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.core.operating_point import (
    RATES,
    Costs,
    Promise,
    exact_interval,
    false_alarm_chance,
)
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector


@dataclass(frozen=True)
class OperatingPoint:
    """Decisions at one target rate."""

    fpr: float  # that is asked for
    # Share of good pictures that may be flagged: more than `fpr` where the pictures are few.
    promised: float
    thresholds: dict[str, float]  # by category
    good: int
    good_flagged: int
    defective: int
    found: int
    drawn: int
    drawn_found: int
    current: bool  # whether it is the rate of the model

    @property
    def recall(self) -> float | None:
        """Share of the defects that is found: of real ones, else of drawn ones, else None."""
        if self.defective:
            return self.found / self.defective
        return self.drawn_found / self.drawn if self.drawn else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Exact 95 % interval of the share of good pictures that is flagged."""
        return exact_interval(self.good_flagged, self.good) if self.good else None

    def cost(self, costs: Costs) -> float | None:
        """Cost of a piece; None where no recall is known.

        Good pieces count with the promised rate, or the measured one where that is larger: a test
        set of few good pictures with none flagged does not make false alarms free.
        """
        if self.recall is None:
            return None
        measured = self.good_flagged / self.good if self.good else 0.0
        return costs.expected(self.recall, max(self.promised, measured))


def operating_points(
    detector: AnomalyDetector,
    table: pd.DataFrame,
    drawn: np.ndarray | None = None,
    rates: Sequence[float] = RATES,
) -> list[OperatingPoint]:
    """Decide again at several rates; nothing is scored again.

    Shapes: drawn (m,).
    """
    own = detector.options.fpr
    bad = table["defective"].map({True: True, False: False})
    is_bad, is_good = (bad == True).to_numpy(bool), (bad == False).to_numpy(bool)  # noqa: E712
    points = []
    for fpr in sorted({*rates, own}):
        flagged = flagged_at(detector, table, fpr)
        drawn_found = 0 if drawn is None else int(is_anomaly(drawn, fpr).sum())
        points.append(
            OperatingPoint(
                fpr,
                detector.promised_fpr(fpr),
                detector.thresholds(fpr),
                int(is_good.sum()),
                int((flagged & is_good).sum()),
                int(is_bad.sum()),
                int((flagged & is_bad).sum()),
                0 if drawn is None else len(drawn),
                drawn_found,
                fpr == own,
            )
        )
    return points


def flagged_at(
    detector: AnomalyDetector, table: pd.DataFrame, fpr: float | np.ndarray
) -> np.ndarray:
    """Decide about scored pictures at another rate, or at several.

    Shapes: fpr () or (r,); gives (n,) or (r, n) bool.
    """
    rates = np.array(
        [[c.calibration.effective_fpr(float(f)) for c in detector.classes] for f in np.ravel(fpr)]
    )
    column = pd.Index(detector.class_names).get_indexer(pd.Index(table["predicted_class"]))
    limits = np.where(column < 0, np.nan, rates[:, column])  # what was not scored is not flagged
    flagged = np.asarray(is_anomaly(table["p_value"].to_numpy(float), limits), dtype=bool)
    return flagged if np.ndim(fpr) else flagged[0]


def chance_of_alarms(detector: AnomalyDetector, good: pd.DataFrame) -> float:
    """How likely so many good pictures are flagged while the promise of each category holds."""
    promises = {c.name: Promise.of(c.calibration, detector.options.fpr) for c in detector.classes}
    fewest = min(promises.values(), key=lambda promise: promise.n)  # of a category unknown to it
    parts = [
        (len(rows), promises.get(str(name), fewest)) for name, rows in good.groupby("category")
    ]
    return false_alarm_chance(int(good["is_anomaly"].astype(bool).sum()), parts)


def recall_metrics(points: Sequence[OperatingPoint]) -> dict[str, float]:
    """Give ``recall_at_fpr/<rate>`` of real defects at :data:`RATES`; empty without them."""
    return {
        f"recall_at_fpr/{p.fpr:g}": p.found / p.defective
        for p in points
        if p.defective and p.fpr in RATES
    }


def costs_of(options: Options) -> Costs | None:
    """Give the costs that `options` name, or None."""
    return None if options.costs is None else Costs(*options.costs)


def cheapest(points: Sequence[OperatingPoint], costs: Costs | None) -> OperatingPoint | None:
    """Choose the rate with the smallest expected cost, the smaller rate of two alike."""
    if costs is None:
        return None
    priced = [(cost, p.fpr, p) for p in points if (cost := p.cost(costs)) is not None]
    return min(priced, key=lambda found: found[:2])[2] if priced else None


def cost_sentence(points: Sequence[OperatingPoint], costs: Costs | None) -> str | None:
    """Name the cheapest of some rates; None without costs, or where no recall is known."""
    best = cheapest(points, costs)
    if best is None or costs is None:
        return None
    now = next(p for p in points if p.current)
    kind = "" if best.defective else " drawn"
    prices = [f"{100 * (p.cost(costs) or 0):.3g} per 100 pieces" for p in (best, now)]
    against = "" if best is now else f", against {prices[1]} at fpr={now.fpr:g}"
    return (
        f"With {costs.escape:g} for an escape, {costs.overkill:g} for an overkill and "
        f"{costs.defect_rate:.3g} of the pieces defective, fpr={best.fpr:g} is the cheapest of "
        f"these rates on the{kind} defects at hand: {prices[0]}{against}."
    )


def rate_lines(points: Sequence[OperatingPoint]) -> list[str]:
    """Write the table of the rates for a log, one line a rate."""
    lines = ["   fpr    threshold  good flagged           defects found"]
    for p in points:
        threshold = max(p.thresholds.values())
        good = "not measured"
        if p.interval:
            low, high = p.interval
            good = f"{p.good_flagged} of {p.good} [{low:.3f}, {high:.3f}]"
        found = "not known"
        if p.defective:
            found = f"{p.found} of {p.defective}"
        elif p.drawn:
            found = f"{p.drawn_found} of {p.drawn} drawn ones"
        mark = "*" if p.current else " "
        lines.append(f"{mark} {p.fpr:<6g} {threshold:<10.4g} {good:22s} {found}")
    return lines
