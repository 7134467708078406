"""The golden pictures of a training run, tried on its model wherever that arrives."""

import tempfile

import mlflow
import numpy as np
import pandas as pd

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import PromotionError

GOLDEN = "golden.parquet"
COLUMNS = ("anomaly_score", "fre", "nll")
# In float32 on one kind of device only the order of sums differs; another device, or half
# precision, rounds otherwise at every layer.
TOLERANCE, LOOSE_TOLERANCE = 1e-4, 2e-2


def load_golden(run_id: str) -> pd.DataFrame:
    """Read the golden pictures of the training run `run_id`, as :func:`golden_table` made them."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=GOLDEN, dst_path=folder
            )
            table = pd.read_parquet(path)
    except (mlflow.MlflowException, OSError, ValueError) as error:
        raise PromotionError(
            f"The run {run_id} has no {GOLDEN} that can be read ({_first_line(error)}): train the "
            "model with this version of dfm-mlflow."
        ) from None
    missing = {"image", "device", "precision", *COLUMNS} - set(table)
    if missing or table.empty:
        raise PromotionError(
            f"{GOLDEN} of the run {run_id} has {len(table)} pictures and lacks the columns "
            f"{', '.join(sorted(missing)) or 'none'}: train the model again."
        )
    return table


def deviation(detector: AnomalyDetector, golden: pd.DataFrame) -> tuple[float, float]:
    """Score golden pictures again, and compare."""
    scores = detector.score(list(golden["image"]))
    largest = 0.0
    for column in COLUMNS:
        old = golden[column].to_numpy(float)
        unit = np.maximum(np.abs(old), np.median(np.abs(old)))
        off = np.abs(scores[column].to_numpy(float) - old) / np.where(unit > 0, unit, 1)
        largest = max(largest, float(np.nan_to_num(off, nan=1e9).max()))
    same = set(golden["device"]) == {detector.extractor.device.type}
    exact = same and set(golden["precision"]) == {detector.extractor.precision} == {"fp32"}
    return largest, TOLERANCE if exact else LOOSE_TOLERANCE


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
