"""What a run found, in sentences and short tables: the line's words beside the field's."""

import pandas as pd

from dfm_mlflow.core.operating_point import UNLIKELY, exact_interval
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.scores.operating_points import chance_of_alarms
from dfm_mlflow.scores.verdict import percent, said_rate


def rates(detector: AnomalyDetector, table: pd.DataFrame) -> list[dict[str, str]]:
    """Hold what is promised against what is measured."""
    if table.empty:
        return []
    flagged = table["is_anomaly"].to_numpy(bool)
    promise = said_rate(detector)
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
                _judgement(detector, table[~bad]),
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
    low, high = exact_interval(k, n)
    return {
        "name": name,
        "line": line,
        "promised": promised,
        "measured": f"{k} of {n}, {percent(k / n)}",
        "interval": f"{percent(low)} to {percent(high)}",
        "judgement": judgement,
    }


def _judgement(detector: AnomalyDetector, good: pd.DataFrame) -> str:
    k, n, chance = int(good["is_anomaly"].sum()), len(good), chance_of_alarms(detector, good)
    if chance < UNLIKELY:
        return (
            f"broken: chance alone gives so many in {percent(chance)} of cases; the test pictures "
            "differ from the good ones that were fitted"
        )
    if k / n <= detector.promised_fpr():
        return "kept"
    return (
        f"kept, as far as {n} pictures can tell: chance gives so many in {percent(chance)} of cases"
    )


def masks(metrics: dict[str, float], table: pd.DataFrame) -> str | None:
    """Say how many defective pictures the pixel metrics leave out; None where there are none."""
    without = int(metrics.get("n_without_mask", 0))
    bad = int((table["defective"] == True).sum())  # noqa: E712  # None where nothing is known
    if "pixel_auroc" not in metrics:
        if bad:
            return f"None of the {bad} defective pictures has a mask: there are no pixel metrics."
        return None
    if not without:
        return None
    verb = "has no mask and is" if without == 1 else "have no mask and are"
    return f"{without} of {bad} defective pictures {verb} left out of the pixel metrics."
