"""A few pictures with their scores, so that a model can be tried wherever it arrives.

They belong to the run and not to the model: whoever serves the model needs no pictures of the line.
"""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from PIL import Image

from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ImageError
from dfm_mlflow.mlflow_plugin.golden import COLUMNS, GOLDEN
from dfm_mlflow.storage.store import S3Object

MOST = 8
_MOST_PIXELS = 4_000_000  # of all golden pictures together; two are kept in any case


def log_golden(detector: AnomalyDetector, train: Sequence[Item], test: Sequence[Item]) -> None:
    """Log up to 8 golden pictures to the active run: good ones, and test pictures if any."""
    most = min(MOST, max(2, _MOST_PIXELS // (detector.options.size[0] * detector.options.size[1])))
    from_test = _spread(test, most // 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GOLDEN
        golden_table(detector, _spread(train, most - len(from_test)) + from_test).to_parquet(path)
        mlflow.log_artifact(str(path))


def golden_table(detector: AnomalyDetector, items: Sequence[Item]) -> pd.DataFrame:
    """Score what the network sees of pictures: one row a readable picture."""
    kept, images = [], []
    for item in items:
        try:
            images.append(_network_input(detector, item.path))
        except (ImageError, OSError):
            continue
        kept.append(item)
    about = pd.DataFrame(
        {
            "image": images,
            "category": [i.category for i in kept],
            "split": [i.split for i in kept],
            "label": [i.label for i in kept],
            "device": detector.extractor.device.type,
            "precision": detector.extractor.precision,
        }
    )
    return pd.concat([about, detector.score(images)[list(COLUMNS)]], axis=1)


def _network_input(detector: AnomalyDetector, source: Path | S3Object) -> bytes:
    extractor = detector.extractor
    pixels = extractor.pixels.resized(extractor.read(source)).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def _spread(items: Sequence[Item], n: int) -> list[Item]:
    """Take n items from the whole length of a list, so from every category and defect it can."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]
