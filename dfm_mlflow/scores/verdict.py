"""What a model decides, in one sentence, and whether that is a matter for concern."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dfm_mlflow.core.calibration import images_needed
from dfm_mlflow.core.operating_point import UNLIKELY, Costs
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.decision import is_estimate
from dfm_mlflow.scores.operating_points import (
    OperatingPoint,
    chance_of_alarms,
    cost_sentence,
    operating_points,
    rate_lines,
)

RESULT = {"dfm_result": True}  # of what is logged and in a job's result, too
LEAST_RECALL = 0.5  # below it a model that ranks well decides badly
_RANKS_WELL = 0.9  # AUROC
_FAR = 2.0  # times the rate that was asked for


@dataclass(frozen=True)
class Verdict:
    """What a model decides.

    Attributes
    ----------
    sentence : str
        What share of defects is found and of good pictures flagged at the threshold.
    concerns : tuple of str
        What is wrong with that, each with its remedy; empty where nothing is.
    rates : tuple of str
        Results at other target rates, in lines.
    """

    sentence: str
    concerns: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All of it, what is wrong first."""
        return " ".join([*self.concerns, self.sentence])


def verdict_of(
    detector: AnomalyDetector,
    table: pd.DataFrame,
    metrics: dict[str, float],
    points: Sequence[OperatingPoint] | None = None,
    further: Sequence[str] = (),
) -> Verdict:
    """Judge what a model decides on scored pictures."""
    points = operating_points(detector, table) if points is None else points
    now = next(p for p in points if p.current)
    concerns = [
        _low_recall(now, points, metrics),
        *further,
        _broken_promise(detector, table, now),
        _far_rate(detector),
    ]
    return Verdict(_sentence(detector, table, metrics, now), tuple(c for c in concerns if c))


def _low_recall(
    now: OperatingPoint, points: Sequence[OperatingPoint], metrics: dict[str, float]
) -> str | None:
    area = metrics.get("image_auroc", 0.0)
    if not now.defective or area <= _RANKS_WELL or now.found >= LEAST_RECALL * now.defective:
        return None
    return (
        f"Recall is {now.found / now.defective:.2f} ({now.found} of {now.defective} defective "
        f"pictures) although AUROC is {area:.3f}: {would_find(now, points)}."
    )


def would_find(now: OperatingPoint, points: Sequence[OperatingPoint]) -> str:
    """Say at which rate more defects would be found."""
    better = [p for p in points if p.fpr > now.fpr and p.found > now.found]
    enough = [p for p in better if p.found >= LEAST_RECALL * p.defective] or better[-1:]
    if enough:
        first = enough[0]
        return f"at fpr {first.fpr:g} it would find {first.found} of {first.defective}"
    return (
        f"no fpr up to {points[-1].fpr:g} finds more; look at the training pictures with the "
        "highest held-out scores, or add good ones"
    )


def _broken_promise(
    detector: AnomalyDetector, table: pd.DataFrame, now: OperatingPoint
) -> str | None:
    if not now.good:
        return None
    good = table[(table["defective"] == False).to_numpy(bool)]  # noqa: E712
    chance = chance_of_alarms(detector, good)
    if chance >= UNLIKELY:
        return None
    return (
        f"{now.good_flagged} of {now.good} good pictures are flagged where "
        f"{said_rate(detector)} is {_word(detector)}, and chance alone gives so many in "
        f"{percent(chance)} of cases: {BROKEN_REMEDY}."
    )


BROKEN_REMEDY = (
    "they differ from the good pictures of the calibration, so recalibrate on new ones like these, "
    "or name what belongs together by group_by if the training pictures are bursts or copies"
)


def _far_rate(detector: AnomalyDetector) -> str | None:
    asked, rate = detector.options.fpr, detector.effective_fpr()
    if rate < _FAR * asked:
        return None
    fewest = min(detector.classes, key=lambda c: c.calibration.n_groups).calibration
    kind = "pictures" if fewest.groups is None else "groups of pictures"
    enough = images_needed(asked, fewest.tail, detector.options.contamination)
    return (
        f"The target false-positive rate is fpr={asked:g}, and {rate:.3g} is the smallest that "
        f"{fewest.n_groups} good {kind} can promise: collect at least {enough} good {kind} to use "
        f"fpr={asked:g}."
    )


def _sentence(
    detector: AnomalyDetector, table: pd.DataFrame, metrics: dict[str, float], now: OperatingPoint
) -> str:
    thresholds = list(now.thresholds.values())
    where = f"at the threshold {thresholds[0]:.4g}" if len(thresholds) == 1 else "at its thresholds"
    promise = f"{_word(detector)}: {said_rate(detector)}"
    if table.empty:
        fitted = f"{metrics['n_train']:.0f} " if "n_train" in metrics else ""
        drawn = "nothing is known of the defects that it finds"
        if now.drawn:
            drawn = f"of defects drawn into good pictures it finds {now.drawn_found} of {now.drawn}"
        return (
            f"The model, fitted to {fitted}good pictures, flags {said_rate(detector)} of "
            f"good ones {where}. There are no test pictures: {drawn}."
        )
    if not now.good and not now.defective:
        flagged = int(table["is_anomaly"].astype(bool).sum())
        return (
            f"The model flags {flagged} of {len(table)} unlabelled pictures {where} ({promise} of "
            "good ones)."
        )
    parts = []
    if now.defective:
        recall = now.found / now.defective
        parts.append(
            f"finds {now.found} of {now.defective} defective pictures (recall {recall:.2f})"
        )
    if now.good:
        parts.append(f"flags {now.good_flagged} of {now.good} good ones ({promise})")
    decided = f"The model {' and '.join(parts)} {where}"
    if "image_auroc" in metrics:
        rank = f"; it ranks them with an image AUROC of {metrics['image_auroc']:.3f}"
    else:
        rank = f"; there is no {'defective' if now.good else 'good'} picture to rank against"
    return f"{decided}{rank}{_weakest(table)}."


def _weakest(table: pd.DataFrame) -> str:
    kinds = ["category", "label"]
    of_defects = table[table["label"] != GOOD].groupby(kinds)["is_anomaly"].agg(["sum", "count"])
    if len(of_defects) < 2 or (of_defects["sum"] == of_defects["count"]).all():
        return ""
    worst = int((of_defects["sum"] / of_defects["count"]).argmin())
    category, label = of_defects.index[worst]
    found, n = of_defects.iloc[worst]
    several = table["category"].nunique() > 1
    name = f"{category}/{label}" if several else label
    return f"; it is weakest on {name}, where it finds {int(found)} of {int(n)}"


def percent(share: float) -> str:
    """Write a `share`, small ones more finely: 0.0125 is 1.25 %, 0.5 is 50.0 %."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", "\u00a0%")  # no line ends between the two
    if 0 < share < 1e-4:
        return "less than 0.01\u00a0%"
    return f"{share:.{2 if share < 0.1 else 1}%}".replace("%", "\u00a0%")


def say(
    logger: logging.Logger, verdict: Verdict, points: Sequence[OperatingPoint], costs: Costs | None
) -> Verdict:
    """Log a verdict, as a warning where there is a concern, and the table of rates."""
    level = logging.WARNING if verdict.concerns else logging.INFO
    logger.log(level, verdict.text, extra=RESULT)
    lines: list[str] = []
    if any(p.good or p.recall is not None for p in points):
        lines = ["Results at other target false-positive rates:", *rate_lines(points)]
    if sentence := cost_sentence(points, costs):
        lines.append(sentence)
    if lines:
        logger.info("\n".join(lines), extra=RESULT)
    return replace(verdict, rates=tuple(lines))


def said_rate(detector: AnomalyDetector) -> str:
    """Write the share of good pictures that may be flagged; at most, unless estimated."""
    share = percent(detector.promised_fpr())
    return share if _is_estimate(detector) else f"at most {share}"


def _word(detector: AnomalyDetector) -> str:
    return "estimated" if _is_estimate(detector) else "promised"


def _is_estimate(detector: AnomalyDetector) -> bool:
    return is_estimate(detector.classes, detector.options.fpr)
