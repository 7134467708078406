"""Scoring through ``mlflow.pyfunc``: REST, batch and Spark end up here."""

import base64
import binascii
import json
import logging
import math
import os
import threading
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.maps import to_png
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.images.picture import is_null, is_single, listed
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.flavor import load_data_folder
from dfm_mlflow.network.extractor import Extractor, Runner
from dfm_mlflow.serving.batcher import Batcher, OverloadedError
from dfm_mlflow.serving.forms import unwrapped
from dfm_mlflow.serving.limits import LateError, Turn, check_size, read_parquet
from dfm_mlflow.serving.threads import (
    calm_request_threads,
    network_threads,
    prepare_server,
    prepare_worker,
    share_of_processors,
)

_logger = logging.getLogger(__name__)

# First bytes of the formats that are read. None of them starts the base64 text of another one.
_MAGIC = (
    *(b"\x89PNG", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"P5\n", b"P5 ", b"P5\t", b"P5\r", b"P6\n", b"P6 ", b"P6\t", b"P6\r"),
)
_LONGEST_NAME = 4096  # of a file, in characters


class RequestError(MlflowException):
    """Answer to a request that cannot be served: one sentence, never the request's own data.

    MLflow's server puts the data before the message of an exception; what it sends is built here.

    Parameters
    ----------
    sentence : str
        The message.
    error_code : int
        Of MLflow, which the HTTP status follows.
    """

    def __init__(self, sentence: str, error_code: int):
        super().__init__(sentence, error_code=error_code)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        """Give the body of the HTTP answer."""
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "PyfuncModel":
    """Load a model for ``mlflow.pyfunc``; MLflow calls this."""
    settings = ServingSettings.parse(model_config)
    prepare_server(settings, lambda body: _read_parquet(body, settings))
    detector = load_data_folder(path, settings)
    model = PyfuncModel(detector, settings)
    start = time.perf_counter()
    model.warm_up()
    extractor = detector.extractor
    _logger.info(
        "dfm model on %s in %s, batches of %d, %d threads a forward pass, warm after %.1f s",
        extractor.device,
        extractor.precision,
        extractor.batch_size,
        network_threads(settings, extractor.device),
        time.perf_counter() - start,
    )
    calm_request_threads(settings, extractor.device)
    return model


class PyfuncModel:
    """Adapter from MLflow's inputs and errors to :meth:`AnomalyDetector.score`.

    Requests of several threads share forward passes; everything else, the score included, is done
    in the thread of each.

    Parameters
    ----------
    detector : AnomalyDetector
    settings : ServingSettings, optional
        Those that the detector was loaded with.
    """

    def __init__(self, detector: AnomalyDetector, settings: ServingSettings | None = None):
        extractor = detector.extractor
        settings = settings or ServingSettings(batch_size=extractor.batch_size)
        self.detector = detector
        self._batcher: Batcher | None = None
        self._settings = settings
        self._in_server, self._in_json = _compat.in_scoring_server(), _compat.answers_in_json()
        if not settings.queue_size:
            return
        before = torch.get_num_threads()
        threads = network_threads(settings, extractor.device)
        self._batcher = Batcher(
            _forward(extractor),
            batch_size=settings.batch_size,
            max_wait=settings.max_wait_ms / 1000,
            queue_size=settings.queue_size,
            prepare=lambda: prepare_worker(threads, extractor.device),
        )
        torch.set_num_threads(before)
        self._decoding = threading.BoundedSemaphore(share_of_processors())
        weakref.finalize(self, self._batcher.close)

    def get_raw_model(self) -> AnomalyDetector:
        """Return the detector."""
        return self.detector

    def warm_up(self) -> None:
        """Score grey pictures, so that the first request is as fast as the hundredth."""
        extractor = self.detector.extractor
        height, width = extractor.size
        picture = to_png(np.full((height + 8, width + 8, 3), 128, np.uint8))

        def seconds(n: int) -> float:
            start = time.perf_counter()
            self.predict(pd.DataFrame({"image": [picture] * n}), {"anomaly_map": n == 1})
            return time.perf_counter() - start

        single, n = seconds(1), extractor.batch_size
        if extractor.device.type == "cuda":  # kernels are chosen and loaded by batch size
            for power in range(1, n.bit_length()):
                seconds(2**power)
        elif single > 0.5:  # a batch would keep a slow machine for long, and has little to warm
            return
        seconds(n)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score the pictures in the column ``image``.

        Parameters
        ----------
        model_input : DataFrame
            Column ``image``: bytes of a picture, or their base64; outside of a server also what
            :meth:`AnomalyDetector.score` takes. Also a Series, a list, or a dict of that name.
        params : dict, optional
            ``fpr``, ``anomaly_map``, ``on_error``, ``category``.

        Returns
        -------
        DataFrame
            One row a picture, with the index of the table that came in.

        Raises
        ------
        MlflowException
            400 for a picture or parameter that cannot be used, and for a request to a server that
            is too large; 503 when the queue is full or memory runs out; 504 when the server's time
            for a request is over; 500 for anything else.
        """
        given = {k: v for k, v in (params or {}).items() if v is not None}
        try:
            with self._batcher.admit() if self._batcher else nullcontext():
                values, index = _column(model_input)
                images = [to_picture(value, files=not self._in_server) for value in values]
                if self._in_server:
                    check_size(images, *_limits(self._settings))
                scores = self._scorer().score(
                    images,
                    fpr=given.get("fpr"),
                    anomaly_map=bool(given.get("anomaly_map", False)),
                    on_error=str(given.get("on_error", "raise")),
                    category=str(given.get("category", "auto")),
                )
        except Exception as error:
            refusal = _refusal(error)
            if refusal.error_code != ErrorCode.Name(INTERNAL_ERROR):
                raise refusal from None
            _logger.exception("A request failed.")
            raise refusal from error
        if index is not None:
            scores.index = index
        if not self._in_json or scores["error"].isna().all():
            return scores
        # JSON knows null and no NaN
        return scores.astype(object).where(scores.notna(), None)

    def _scorer(self) -> AnomalyDetector:
        """Give the detector through the batcher, for one request."""
        if self._batcher is None:
            return self.detector
        # what a client no longer waits for is not worth a picture more
        seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get() if self._in_server else math.inf
        turn = Turn(self._decoding, seconds)
        extractor = self.detector.extractor.with_runner(self._batcher.run, turn)
        return self.detector.with_extractor(extractor)


def _limits(settings: ServingSettings) -> tuple[int, int]:
    return settings.max_pictures, settings.max_megabytes * 2**20


def _read_parquet(body: bytes, settings: ServingSettings) -> pd.DataFrame:
    """Read the body of a request; its refusal is an answer of the server."""
    try:
        return read_parquet(body, *_limits(settings))
    except Exception as error:
        raise _refusal(error) from None


def _forward(extractor: Extractor) -> Runner:
    if extractor.device.type != "cuda":
        return extractor.run_batch
    stream = torch.cuda.current_stream(extractor.device)

    def run(pixels: torch.Tensor) -> list[torch.Tensor]:
        maps = extractor.run_batch(pixels)
        stream.synchronize()  # while a batch runs, the next one gathers
        return maps

    return run


def _refusal(error: Exception) -> RequestError:
    """Say to a client what happened, in one sentence."""
    if isinstance(error, ImageError | ConfigError):
        return RequestError(str(error), INVALID_PARAMETER_VALUE)
    if isinstance(error, OverloadedError):
        return RequestError(
            "The server has as many requests as it takes: send this one again in a moment.",
            TEMPORARILY_UNAVAILABLE,
        )
    if isinstance(error, LateError):
        return RequestError(
            "The time of the request is over: send fewer pictures at once.", DEADLINE_EXCEEDED
        )
    if _is_lack_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return RequestError(
            "Memory ran out: send fewer or smaller pictures, or lower batch_size.",
            TEMPORARILY_UNAVAILABLE,
        )
    return RequestError(
        f"The server failed at this request ({type(error).__name__}): its log says more.",
        INTERNAL_ERROR,
    )


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator on a CPU, cuDNN and cuBLAS say it in words only
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _column(model_input: Any) -> tuple[list[Any], pd.Index | None]:
    """Find the pictures of an input, and the index of the table that they came in."""
    if isinstance(model_input, pd.DataFrame):
        if "image" in model_input.columns:
            return model_input["image"].tolist(), model_input.index
        if model_input.shape[1] == 1:
            return model_input.iloc[:, 0].tolist(), model_input.index
    elif isinstance(model_input, pd.Series):
        return model_input.tolist(), model_input.index
    elif isinstance(model_input, dict) and "image" in model_input:
        given = model_input["image"]
        return [given] if is_single(given) else _flat(given), None
    elif isinstance(model_input, list | tuple | np.ndarray) or is_single(model_input):
        return _flat(model_input), None
    raise ConfigError("The input has no column 'image': send the pictures under that name.")


def _flat(pictures: Any) -> list[Any]:
    if isinstance(pictures, np.ndarray) and pictures.dtype == object:
        return list(pictures.ravel())
    return listed(pictures)


def to_picture(value: Any, *, files: bool) -> Any:
    """Take a value of a request, or of a table in this process, for what it is.

    Parameters
    ----------
    value : object
        Bytes or their base64 in text or bytes, with line breaks or without; without a server also
        the name of a file, an array, and whatever else Python calls a picture.
    files : bool
        Whether text may name a file: never in a request, whose sender is anybody.

    Returns
    -------
    object
        Bytes where the value was one of them or text; None where it is null; the value itself
        otherwise.
    """
    value = unwrapped(value)
    if is_null(value):
        return None
    if isinstance(value, str):
        coded = value.encode("ascii", "replace")
        data = _from_base64(coded, broken=True)
        if files and _names_a_file(value, data):
            return Path(value)
        return coded if data is None else data
    if isinstance(value, bytes | bytearray | memoryview):
        given = bytes(value)
        data = _from_base64(given)
        if data is None and not _known(given):
            data = _from_base64(given, broken=True)
        return given if data is None else data  # the decoder says what is wrong with it
    return value


def _names_a_file(text: str, decoded: bytes | None) -> bool:
    """Whether text is the name of a file rather than base64."""
    if not text or len(text) > _LONGEST_NAME:
        return False
    return decoded is None or (not _known(decoded) and os.path.isfile(text))


def _known(data: bytes) -> bool:
    return data.startswith(_MAGIC)


def _from_base64(text: bytes, *, broken: bool = False) -> bytes | None:
    """Decode base64, which `base64` breaks into lines; None where it is something else."""
    try:
        return base64.b64decode(b"".join(text.split()) if broken else text, validate=True)
    except binascii.Error:
        return None
