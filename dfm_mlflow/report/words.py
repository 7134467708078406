"""What a run found, in sentences and short tables: the line's words beside the field's."""

import pandas as pd
from scipy.stats import betabinom, binomtest

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

UNLIKELY = 0.05  # a promise is called broken when chance alone would do that more rarely


def verdict(detector: AnomalyDetector, table: pd.DataFrame, metrics: dict[str, float]) -> str:
    """Say in one sentence what is found, what slips through, and what is flagged for nothing.

    Parameters
    ----------
    detector : AnomalyDetector
    table : DataFrame
        Scored pictures without errors; ``defective`` is None where nothing is known.
    metrics : dict of str to float
    """
    thresholds = list(detector.thresholds().values())
    where = f"At the threshold {thresholds[0]:.4g}" if len(thresholds) == 1 else "At its thresholds"
    promise = f"promised: at most {percent(detector.effective_fpr())}"
    if table.empty:
        fitted = f"{metrics['n_train']:.0f} " if "n_train" in metrics else ""
        return (
            f"{where} the model, fitted to {fitted}good pictures, flags at most "
            f"{percent(detector.effective_fpr())} of good ones; without test pictures nothing is "
            "known of the defects that it finds."
        )
    flagged = table["is_anomaly"].astype(bool)
    if table["defective"].isna().all():
        return (
            f"{where} the model flags {_share(flagged.sum(), len(table))} unlabelled pictures "
            f"({promise} of good ones)."
        )
    bad = table["defective"].astype(bool)
    parts = []
    if bad.any():
        found, n = int((bad & flagged).sum()), int(bad.sum())
        parts.append(f"finds {_share(found, n)} defective pictures")
    if (~bad).any():
        parts.append(f"flags {_share((~bad & flagged).sum(), (~bad).sum())} good ones ({promise})")
    if "image_auroc" in metrics:
        parts.append(f"ranks them with an image AUROC of {metrics['image_auroc']:.3f}")
    else:
        parts.append(f"there is no {'good' if bad.all() else 'defective'} picture to rank against")
    weakest = _weakest(table)
    return f"{where} the model {', '.join(parts[:-1])} and {parts[-1]}{weakest}."


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


def rates(detector: AnomalyDetector, table: pd.DataFrame) -> list[dict[str, str]]:
    """Hold what is promised against what is measured.

    Parameters
    ----------
    detector : AnomalyDetector
    table : DataFrame
        Of an :class:`Evaluation`, without rows that have an error.

    Returns
    -------
    list of dict
        ``name``, ``line`` (the word on the line), ``promised``, ``measured``, ``interval`` (exact,
        95 %) and ``judgement``.
    """
    if table.empty:
        return []
    flagged = table["is_anomaly"].to_numpy(bool)
    promise = f"at most {percent(detector.effective_fpr())}"
    if table["defective"].isna().all():
        return [
            _rate(
                "flagged pictures",
                "of all, without labels",
                f"{promise} of good ones",
                flagged.sum(),
                len(flagged),
                "without labels nothing is known of defects",
            )
        ]
    bad = table["defective"].to_numpy(bool)
    found = []
    if not bad.all():
        k, n = int((~bad & flagged).sum()), int((~bad).sum())
        found.append(
            _rate(
                "false-positive rate",
                "overkill: good pictures that are flagged",
                promise,
                k,
                n,
                _judgement(detector, k, n),
            )
        )
    if bad.any():
        found.append(
            _rate(
                "false-negative rate",
                "escapes: defective pictures that pass",
                "no promise",
                (bad & ~flagged).sum(),
                bad.sum(),
                "no defect was seen in fitting or calibration",
            )
        )
    return found


def _rate(name: str, line: str, promised: str, k: int, n: int, judgement: str) -> dict[str, str]:
    interval = binomtest(int(k), int(n)).proportion_ci(method="exact")
    return {
        "name": name,
        "line": line,
        "promised": promised,
        "measured": f"{k} of {n}, {percent(k / n)}",
        "interval": f"{percent(interval.low)} to {percent(interval.high)}",
        "judgement": judgement,
    }


def chance_of(detector: AnomalyDetector, k: int, n: int) -> float:
    """How likely `k` or more of `n` new good pictures are flagged while the promise holds.

    The calibration's pictures are a sample too: the count is beta-binomial, not binomial.

    Parameters
    ----------
    detector : AnomalyDetector
    k, n : int

    Returns
    -------
    float
    """
    held_out = min(len(c.calibration.scores) for c in detector.classes) + 1
    rate = min(detector.effective_fpr(), 1 - 1e-9)
    return float(betabinom.sf(k - 1, n, rate * held_out, (1 - rate) * held_out))


def _judgement(detector: AnomalyDetector, k: int, n: int) -> str:
    chance = chance_of(detector, k, n)
    if chance < UNLIKELY:
        return (
            f"broken: chance alone gives so many in {percent(chance)} of cases; the test pictures "
            "differ from the good ones that were fitted"
        )
    if k / n <= detector.effective_fpr():
        return "kept"
    return (
        f"kept, as far as {n} pictures can tell: chance gives so many in {percent(chance)} of cases"
    )


def percent(share: float) -> str:
    """Write a `share`, small ones more finely: 0.0125 is 1.25 %, 0.5 is 50.0 %."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", "\u00a0%")  # no line ends between the two
    return f"{share:.{2 if share < 0.1 else 1}%}".replace("%", "\u00a0%")


def _share(k: int, n: int) -> str:
    return f"{int(k)} of {int(n)}"
