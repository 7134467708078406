"""One decision for all pictures of a part, such as its views or its lights."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

# With their pandas dtypes.
PART_COLUMNS = {"part": "object", "part_p_value": "float64", "part_is_anomaly": "bool"}


def part_decisions(
    detector: AnomalyDetector, table: pd.DataFrame, parts: Sequence[str]
) -> pd.DataFrame:
    """Decide on parts by the scores of their pictures.

    The p-value of a part of m pictures is m times the smallest of theirs, at most 1 (Bonferroni).
    If each picture's p-value keeps its promise, P(p <= u) <= u for good ones, so does the part's,
    whatever the pictures of a part have to do with each other: by the union bound P(m min p <= u)
    <= m u / m. Its smallest possible value is m times that of a picture, and a part is flagged at
    the larger one of that and the model's rate.

    Parameters
    ----------
    detector : AnomalyDetector
    table : DataFrame
        Of :meth:`AnomalyDetector.score`, n rows, with all pictures of each part.
    parts : sequence of str
        Part of each picture.

    Returns
    -------
    DataFrame
        n rows with the columns of :data:`PART_COLUMNS`, the same for all pictures of a part. A part
        with a picture that could not be scored has a p-value and is flagged if the others suffice;
        else both are null: it is not known to be good.
    """
    smallest = {m.name: m.calibration.smallest_p_value for m in detector.classes}
    rows = pd.DataFrame({"part": list(parts)}, index=table.index)
    rows["p"] = table["p_value"].astype(float)
    rows["missing"] = table["error"].notna()
    rows["smallest"] = [smallest.get(name, np.nan) for name in table["predicted_class"]]
    whole = rows.groupby("part", sort=False).agg(
        p=("p", "min"), m=("p", "size"), missing=("missing", "any"), smallest=("smallest", "max")
    )
    m = whole["m"].to_numpy(float)
    p_value = np.minimum(1.0, m * whole["p"].to_numpy())
    limit = np.maximum(detector.options.fpr, np.minimum(1.0, m * whole["smallest"].to_numpy()))
    flagged = np.asarray(is_anomaly(p_value, limit), dtype=bool)
    unknown = whole["missing"].to_numpy(bool) & ~flagged
    decided = pd.DataFrame(
        {
            "part_p_value": np.where(unknown, np.nan, p_value),
            "part_is_anomaly": pd.Series(flagged.astype(object), whole.index).mask(unknown, None),
        },
        index=whole.index,
    )
    return rows[["part"]].join(decided, on="part")


def promise_of(detector: AnomalyDetector, parts: Sequence[str]) -> str:
    """Say what the decision about parts promises.

    Parameters
    ----------
    detector : AnomalyDetector
    parts : sequence of str
        Part of each picture.

    Returns
    -------
    str
        One sentence.
    """
    counts = pd.Series(list(parts)).value_counts()
    calibrations = [model.calibration for model in detector.classes]
    smallest, most = max(c.smallest_p_value for c in calibrations), int(counts.max())
    of_each = detector.options.fpr / most
    rate = min(1.0, most * max(c.promised_fpr(of_each) for c in calibrations))
    sentence = (
        f"{len(counts)} parts of {int(counts.min())} to {most} pictures: a part's p-value is the "
        f"smallest of its pictures times their number, and at most {rate:.3g} of good parts are "
        "flagged"
    )
    if smallest > of_each:
        sentence += (
            f"; {most} pictures need p-values of {of_each:.3g}, and the calibration ends at "
            f"{smallest:.3g}: calibrate on more pictures"
        )
    return sentence + "."
