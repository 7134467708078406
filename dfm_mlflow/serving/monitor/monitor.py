"""All that a server does beside answering, behind one face; off, it is not there at all."""

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.serving.engine import Engine, Engines, Observers
from dfm_mlflow.serving.monitor.alarm import KINDS
from dfm_mlflow.serving.monitor.channel import Channel
from dfm_mlflow.serving.monitor.follow import Follower
from dfm_mlflow.serving.monitor.memory import memory_of
from dfm_mlflow.serving.monitor.messages import cautious_p_values, model_message, watched_of
from dfm_mlflow.serving.monitor.metrics import Metrics
from dfm_mlflow.serving.refusal import kind_of
from dfm_mlflow.serving.threads import worker_count

_PULSE = 5.0  # seconds between two looks at memory
_WAIT_FOR_WRITER = 15.0
_LAST_SECONDS = 25.0  # that the end of a server waits for its log
_NOTHING = (None, None, None, None, None)  # score, p-value, flagged, class, decision
_KEPT = {  # pictures with which decisions
    "none": (),
    "flagged": ("reject",),
    "retest": ("reject", "retest"),
    "all": ("reject", "retest", "pass"),
}

_logger = logging.getLogger(__name__)


class Monitor:
    """Metrics, log, alarm and the alias of one server process."""

    def __init__(self, settings: ServingSettings):
        self._settings, self._workers = settings, worker_count()
        self._metrics = Metrics(self._workers) if settings.metrics_port is not None else None
        self.observers = Observers()
        if self._metrics:
            seconds = self._metrics.decode_seconds.observe
            self.observers = Observers(self._metrics.batch, seconds)
        self._channel: Channel | None = None
        self._heard = threading.Event()
        self._alarm: dict[str, dict[str, float]] = {}
        self._failed = False

    @classmethod
    def of(cls, settings: ServingSettings) -> "Monitor | None":
        """Build what the `settings` ask for; None where that is nothing, or no server asks."""
        return cls(settings) if settings.watches and _compat.in_scoring_server() else None

    def begin(self, engines: Engines) -> str:
        """Begin with the first version."""
        engine, settings = engines.current, self._settings
        self._check_alarm(engine.detector)
        if settings.log_to is not None or settings.drift_alarm is not None:
            message = model_message(engine)
            self._channel = Channel(settings, self._workers, message, self._hear)
            _compat.on_shutdown(lambda: self._end(_LAST_SECONDS))
            if not self._heard.wait(_WAIT_FOR_WRITER):
                _logger.warning("The process that writes the log is slow to begin.")
        if self._metrics:
            assert settings.metrics_port is not None
            self._serves(engine)
            self._metrics.current.set(1)
            self._metrics.expose(settings.metrics_port, settings.metrics_host)
            threading.Thread(target=self._pulse, args=(engines,), daemon=True).start()
        if settings.follow != "none":
            Follower(settings, engines, self.observers, self._changed, self._followed).start()
        return self._says(engine)

    def answered(
        self, engine: Engine, images: Sequence[Any], scores: pd.DataFrame, seconds: float
    ) -> None:
        """Take note of a request that was answered."""
        try:
            self._answered(engine, images, scores, seconds)
        except Exception:
            self._fail()

    def refused(
        self, engine: Engine, error: Exception, told: MlflowException, seconds: float
    ) -> None:
        """Take note of a request that was refused."""
        try:
            if self._metrics:
                self._metrics.requests.inc()
                self._metrics.request_seconds.observe(seconds)
                self._metrics.errors.labels(kind_of(error)).inc()
            if self._channel and kind_of(error) != "overloaded":
                row = self._row(engine, None, _NOTHING, str(told.message), seconds)
                self._hand_over(engine, [row], [(None, 1.0)], [])
        except Exception:
            self._fail()

    def failed(self, error: Exception) -> None:
        """Count a request that did not reach the model, because of an `error` in its body."""
        if self._metrics:
            self._metrics.errors.labels(kind_of(error)).inc()

    # -- one request -------------------------------------------------------------------------------

    def _answered(
        self, engine: Engine, images: Sequence[Any], scores: pd.DataFrame, seconds: float
    ) -> None:
        errors = scores["error"].tolist()
        good = [error is None for error in errors]
        p_values, flagged = scores["p_value"].tolist(), scores["is_anomaly"].tolist()
        if self._metrics:
            self._metrics.answered(
                [p for p, ok in zip(p_values, good, strict=True) if ok],
                [bool(f) for f, ok in zip(flagged, good, strict=True) if ok],
                seconds,
            )
            if n := good.count(False):
                self._metrics.errors.labels("picture").inc(n)
        if not self._channel or not good:
            return
        values, classes = scores["anomaly_score"].to_numpy(float), scores["predicted_class"]
        cautious = cautious_p_values(engine.detector, values, classes.tolist())
        decisions = scores["decision"].tolist() if "decision" in scores else [None] * len(good)
        rows, pictures = [], []
        for i, ok in enumerate(good):
            data = images[i] if isinstance(images[i], bytes) else None
            digest = None if data is None else hashlib.sha256(data).hexdigest()
            found: Sequence[Any] = _NOTHING
            if ok:
                decision = decisions[i] or ("reject" if flagged[i] else "pass")
                found = (values[i], p_values[i], bool(flagged[i]), classes.iloc[i], decision)
                if data is not None and digest and decision in _KEPT[self._settings.keep]:
                    pictures.append((digest, data))
            rows.append(self._row(engine, digest, found, errors[i], seconds))
        self._hand_over(engine, rows, cautious, pictures)

    def _row(
        self,
        engine: Engine,
        digest: str | None,
        found: Sequence[Any],
        error: str | None,
        seconds: float,
    ) -> list[Any]:
        """Values in the order of the log's columns, without the alarm's."""
        version = engine.version.number or None
        return [time.time(), version, digest, *found, error, round(seconds * 1000, 3)]

    def _hand_over(
        self,
        engine: Engine,
        rows: list[list[Any]],
        cautious: Sequence[tuple[str | None, float]],
        pictures: Sequence[tuple[str, bytes]],
    ) -> None:
        assert self._channel
        message = {
            "kind": "rows",
            "model": engine.version.digest,
            "rows": rows,
            "cautious": cautious,
            "pictures": [digest for digest, _ in pictures],
        }
        self._channel.hand_over(message, len(rows), [data for _, data in pictures])

    def _fail(self) -> None:
        """Log a mistake of ours once; an answer does not depend on it."""
        if not self._failed:
            _logger.exception("A request was answered, but is not in metrics and log.")
        self._failed = True

    # -- the writer's reports ----------------------------------------------------------------------

    def _hear(self, status: dict[str, Any]) -> None:
        self._alarm = status["alarm"]
        if status["remembers"]:
            self._heard.set()
        metrics = self._metrics
        if not metrics:
            return
        metrics.add_up("rows", metrics.logged, {"": status["written"].get("rows", 0)})
        metrics.add_up("kept", metrics.kept, {"": status["written"].get("pictures", 0)})
        metrics.add_up("dropped", metrics.dropped, status["dropped"])
        metrics.add_up("evicted", metrics.evicted, status["evicted"])
        metrics.add_up("webhook", metrics.webhook, status["webhook"])
        for kind in KINDS:
            if found := self._alarm.get(kind):
                metrics.alarm.labels(kind).set(found["alarm"])
                metrics.evidence.labels(kind).set(found["evidence"])

    def _pulse(self, engines: Engines) -> None:
        """Now and then look at what nothing else says."""
        assert self._metrics
        last: Counter[str] = Counter()
        while True:
            engine = engines.current
            for kind, size in memory_of(engine.detector.extractor.device).items():
                self._metrics.memory.labels(kind).set(size)
            if engine.batcher:
                self._metrics.queue.set(engine.batcher.n_admitted)
            if self._channel:
                for reason, n in self._channel.dropped.items():
                    self._metrics.dropped.labels(reason).inc(n - last[reason])
                    last[reason] = n
            time.sleep(_PULSE)

    # -- versions ----------------------------------------------------------------------------------

    def _changed(self, engine: Engine) -> None:
        if self._channel:
            self._channel.begin(model_message(engine))
        if self._metrics:
            self._serves(engine)

    def _followed(self, result: str | None, current: bool) -> None:
        if self._metrics:
            self._metrics.current.set(current)
            if result:
                self._metrics.follow.labels(result).inc()

    def _serves(self, engine: Engine) -> None:
        assert self._metrics
        extractor, version = engine.detector.extractor, engine.version
        device, precision = str(extractor.device), extractor.precision
        self._metrics.serves(version.name, version.number, device, precision, version.digest)

    def _check_alarm(self, detector: AnomalyDetector) -> None:
        settings = self._settings
        if settings.drift_alarm is None:
            return
        if settings.log_to is None:
            _logger.warning(
                "drift_alarm without log_to forgets what it has seen when the server ends: give a "
                "folder that outlives it."
            )
        promise = settings.drift_alarm / self._workers / len(detector.classes)
        for name, watched in watched_of(detector).items():
            least = watched.test(promise, None).expected_flagged
            given = settings.expected_flagged
            if given is not None and given < least:
                _logger.warning(
                    "expected_flagged=%g is less than the %.3g that the calibration of %s promises "
                    "for good pictures alone: that is expected.",
                    given,
                    least,
                    name,
                )

    def _says(self, engine: Engine) -> str:
        parts = [engine.version.words.removeprefix("; ")] if engine.version.number else []
        if self._settings.drift_alarm is not None:
            raised = [kind for kind, found in self._alarm.items() if found["alarm"]]
            parts.append(f"alarm {'raised: ' + ' and '.join(raised) if raised else 'watching'}")
        if self._settings.log_to is not None:
            parts.append(f"log to {self._settings.log_to}, keep {self._settings.keep}")
        if self._settings.follow != "none":
            parts.append(f"follows {self._settings.follow}")
        return "; " + ", ".join(parts) if parts else ""

    def _end(self, seconds: float) -> None:
        if self._channel:
            self._channel.close(seconds)
