"""Scoring through ``mlflow.pyfunc``: REST, batch and Spark end up here."""

import logging
import time
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, ErrorCode

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.flavor import load_data_folder
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel
from dfm_mlflow.serving.engine import Engine, Engines, Version
from dfm_mlflow.serving.inputs import column_of, to_picture
from dfm_mlflow.serving.limits import check_size, read_parquet
from dfm_mlflow.serving.monitor.monitor import Monitor
from dfm_mlflow.serving.refusal import refusal_of
from dfm_mlflow.serving.threads import calm_request_threads, network_threads, prepare_server

_logger = logging.getLogger(__name__)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "PyfuncModel":
    """Load a model for ``mlflow.pyfunc``; MLflow calls this."""
    settings = ServingSettings.served(model_config)
    monitor: Monitor | None = None
    prepare_server(settings, lambda body: _read_parquet(body, settings, monitor))
    monitor = Monitor.of(settings)  # before anything else: it may refuse
    detector = load_data_folder(path, settings)
    root = Path(path).parent
    version = Version(read_mlmodel(root).sha256, *_compat.registered_as(root))
    model = PyfuncModel(detector, settings, version=version, monitor=monitor)
    start = time.perf_counter()
    model.warm_up()
    extractor = detector.extractor
    _logger.info(
        "dfm model on %s in %s, batches of %d, %d threads a forward pass, warm after %.1f s%s",
        extractor.device,
        extractor.precision,
        extractor.batch_size,
        network_threads(settings, extractor.device),
        time.perf_counter() - start,
        monitor.begin(model.engines) if monitor else version.words,
    )
    calm_request_threads(settings, extractor.device)
    return model


class PyfuncModel:
    """Adapter from MLflow's inputs and errors to :meth:`AnomalyDetector.score`.

    Requests of several threads share forward passes; everything else, the score included, is done
    in the thread of each.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        settings: ServingSettings | None = None,
        *,
        version: Version | None = None,
        monitor: Monitor | None = None,
    ):
        settings = settings or ServingSettings(batch_size=detector.extractor.batch_size)
        self._settings, self._monitor = settings, monitor
        observers = monitor.observers if monitor else None
        self.engines = Engines(Engine(detector, settings, version, observers))
        self._in_server, self._in_json = _compat.in_scoring_server(), _compat.answers_in_json()
        self._stated_fpr = detector.options.fpr
        self._says_version = monitor is not None and settings.follow != "none"

    def get_raw_model(self) -> AnomalyDetector:
        """Return the detector."""
        return self.engines.current.detector

    def warm_up(self) -> None:
        """Score grey pictures, so that the first request is as fast as the hundredth."""
        self.engines.current.warm_up()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score the pictures in the column ``image``."""
        given = {k: v for k, v in (params or {}).items() if v is not None}
        begun = time.perf_counter()
        with self.engines.lease() as engine:
            try:
                with engine.admit():
                    values, index = column_of(model_input)
                    images = [to_picture(value, files=not self._in_server) for value in values]
                    if self._in_server:
                        check_size(images, *_limits(self._settings))
                    scores = engine.score(images, **self._arguments(given))
            except Exception as error:
                refusal = refusal_of(error)
                if self._monitor:
                    self._monitor.refused(engine, error, refusal, time.perf_counter() - begun)
                if refusal.error_code != ErrorCode.Name(INTERNAL_ERROR):
                    raise refusal from None
                _logger.exception("A request failed.")
                raise refusal from error
            if self._monitor:  # before it is answered: what a client has is in the log
                self._monitor.answered(engine, images, scores, time.perf_counter() - begun)
            version = engine.version.number
        if self._says_version:
            scores["model_version"] = pd.Series([version or None] * len(scores), dtype=object)
        if index is not None:
            scores.index = index
        if not self._in_json or scores["error"].isna().all():
            return scores
        # JSON knows null and no NaN
        return scores.astype(object).where(scores.notna(), None)

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Take the parameters of a request, where MLflow puts in what the signature states."""
        fpr = given.get("fpr")
        return {
            # the rate of the version that the server began with is not that of another one
            "fpr": None if fpr == self._stated_fpr else fpr,
            "anomaly_map": bool(given.get("anomaly_map", False)),
            "on_error": str(given.get("on_error", "raise")),
            "category": str(given.get("category", "auto")),
        }


def _limits(settings: ServingSettings) -> tuple[int, int]:
    return settings.max_pictures, settings.max_megabytes * 2**20


def _read_parquet(body: bytes, settings: ServingSettings, monitor: Monitor | None) -> pd.DataFrame:
    """Read the body of a request; its refusal is an answer of the server."""
    try:
        return read_parquet(body, *_limits(settings))
    except Exception as error:
        if monitor:
            monitor.failed(error)
        raise refusal_of(error) from None
