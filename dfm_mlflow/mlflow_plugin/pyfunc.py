"""Scoring through ``mlflow.pyfunc``: REST, batch and Spark end up here."""

import base64
import binascii
import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.mlflow_plugin.flavor import load_data_folder

_logger = logging.getLogger(__name__)

# First bytes of the formats that are read. None of them starts the base64 text of another one.
_MAGIC = (b"\x89PNG", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


class RequestError(MlflowException):
    """Answer to a request that cannot be served: one sentence, never the request's own data.

    MLflow's server puts the data before the message of an exception; what it sends is built here.
    """

    def __init__(self, sentence: str, error_code: int):
        super().__init__(sentence, error_code=error_code)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        """Give the body of the HTTP answer."""
        self.message = self.sentence
        return str(super().serialize_as_json())


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "PyfuncModel":
    """Load a model for ``mlflow.pyfunc``; MLflow calls this."""
    detector = load_data_folder(path, model_config or {})
    extractor = detector.extractor
    _logger.info(
        "dfm model on %s in %s, batches of %d",
        extractor.device, extractor.precision, extractor.batch_size,
    )  # fmt: skip
    return PyfuncModel(detector)


class PyfuncModel:
    """Adapter from MLflow's inputs and errors to :meth:`AnomalyDetector.score`.

    Parameters
    ----------
    detector : AnomalyDetector
    """

    def __init__(self, detector: AnomalyDetector):
        self.detector = detector

    def get_raw_model(self) -> AnomalyDetector:
        """Return the detector."""
        return self.detector

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score the pictures in the column ``image``.

        Parameters
        ----------
        model_input : DataFrame
            Column ``image``: bytes of a picture, or their base64.
        params : dict, optional
            ``fpr``, ``anomaly_map``, ``on_error``.

        Raises
        ------
        MlflowException
            400 for a picture or parameter that cannot be used, 503 when memory runs out.
        """
        given = {k: v for k, v in (params or {}).items() if v is not None}
        try:
            images = [_to_bytes(value) for value in _column(model_input)]
            scores = self.detector.score(
                images,
                fpr=given.get("fpr"),
                anomaly_map=bool(given.get("anomaly_map", False)),
                on_error=str(given.get("on_error", "raise")),
            )
        except (ImageError, ConfigError) as error:
            raise RequestError(str(error), INVALID_PARAMETER_VALUE) from None
        except (MemoryError, torch.OutOfMemoryError):
            raise RequestError(
                "Memory ran out: send fewer or smaller pictures, or lower batch_size.",
                TEMPORARILY_UNAVAILABLE,
            ) from None
        if scores["error"].isna().all():
            return scores
        # JSON knows null and no NaN
        return scores.astype(object).where(scores.notna(), None)


def _column(model_input: Any) -> list[Any]:
    if isinstance(model_input, pd.DataFrame):
        if "image" in model_input.columns:
            return model_input["image"].tolist()
        if model_input.shape[1] == 1:
            return model_input.iloc[:, 0].tolist()
    elif isinstance(model_input, dict) and "image" in model_input:
        return list(np.atleast_1d(np.asarray(model_input["image"], dtype=object)))
    elif isinstance(model_input, list | np.ndarray | pd.Series):
        return list(np.asarray(model_input, dtype=object).ravel())
    raise ConfigError("The input has no column 'image': send the pictures under that name.")


def _to_bytes(value: Any) -> bytes:
    """Give the bytes of a picture from raw bytes or base64; empty where it is neither."""
    if isinstance(value, str):
        value = value.encode("ascii", "replace")
    if not isinstance(value, bytes | bytearray | memoryview):
        return b""
    data = bytes(value)
    if data.startswith(_MAGIC):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return data  # the decoder says what is wrong with it
