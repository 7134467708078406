"""What a served model's log shows: decisions and scores, without any picture."""

from collections.abc import Sequence

import pandas as pd

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.measure import drift_of_rows
from dfm_mlflow.scores.operating_points import OperatingPoint, operating_points
from dfm_mlflow.scores.verdict import Verdict, verdict_of
from dfm_mlflow.storage.dated_folder import DatedFolder
from dfm_mlflow.storage.served_log import parts, tables


def is_log(address: str) -> bool:
    """Whether a server's log lies at an `address`, a folder or an ``s3://`` prefix."""
    if address.endswith(".csv"):
        return False
    try:
        return bool(parts(DatedFolder(address)))
    except (DataError, OSError):
        return False  # whoever wants pictures from there says why


def read_log(address: str, version: str | None = None) -> pd.DataFrame:
    """Read the rows of a log."""
    table: pd.DataFrame = pd.concat([t.to_pandas() for t in tables(address)], ignore_index=True)
    known = table["model_version"].dropna().unique()
    if version is None or not len(known):
        return table
    mine: pd.DataFrame = table[table["model_version"] == version]
    if mine.empty:
        raise DataError(
            f"{address} has rows of the versions {', '.join(sorted(known))} and none of {version}: "
            "name a model of these."
        )
    mine = mine.reset_index(drop=True)
    return mine


def measure_log(
    detector: AnomalyDetector, table: pd.DataFrame
) -> tuple[dict[str, float], list[str], Verdict, Sequence[OperatingPoint]]:
    """Say what the rows of a log show of the model that wrote them."""
    read = table[table["error"].isna()].reset_index(drop=True)
    if read.empty:
        raise DataError(f"None of {len(table)} rows of the log was scored: name another log.")
    foreign = set(read["predicted_class"]) - set(detector.class_names)
    if foreign:
        raise DataError(
            f"The log has pictures of {', '.join(sorted(foreign))}, which the model does not have: "
            "name the model that was served."
        )
    drift = drift_of_rows(detector, read)
    metrics = {
        "n_images": float(len(read)),
        "n_unreadable": float(len(table) - len(read)),
        "latency_ms_p50": float(table["latency_ms"].quantile(0.5)),
        "latency_ms_p99": float(table["latency_ms"].quantile(0.99)),
        "n_alarms": float(table["alarm"].notna().sum()),
        "drift_flagged": drift.flagged,
        "drift_ks": drift.statistic,
        "drift_significance": drift.significance,
        "threshold": max(detector.thresholds().values()),
        "effective_fpr": detector.effective_fpr(),
    }
    known = read.assign(defective=None, label="unlabelled")
    points = operating_points(detector, known)
    verdict = verdict_of(detector, known, metrics, points)
    first, last = table["time"].min(), table["time"].max()
    sentences = [
        detector.calibration_sentence(),
        f"{len(read)} pictures were answered from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} "
        f"UTC, and {len(table) - len(read)} could not be scored; {drift.flagged:.1%} were flagged, "
        f"and small p-values are up to {drift.statistic:.2f} too frequent (Kolmogorov-Smirnov, "
        f"one-sided; significance {drift.significance:.2g}).",
    ]
    return metrics, sentences, verdict, points
