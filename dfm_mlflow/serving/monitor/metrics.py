"""What Prometheus is told, by its own client library, for one worker or several.

The library asks for a folder before it is imported where several processes share their numbers; so
nothing here imports it at the top.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.serving.monitor.shared import FOLDER, AllWorkers, prepare_folder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

WINDOWS = (100, 1000, 10_000)  # pictures
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)
_P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_RETRY = 2.0  # seconds until a worker tries again to take the port over
ERRORS = ("picture", "request", "overloaded", "late", "memory", "internal")

_logger = logging.getLogger(__name__)


class Window:
    """Shares of flagged pictures among the last ones."""

    def __init__(self, lengths: Sequence[int] = WINDOWS):
        self._lengths = lengths
        self._ring = np.zeros(max(lengths), np.uint8)
        self._n, self._flagged = 0, dict.fromkeys(lengths, 0)

    def add(self, flagged: Iterable[bool]) -> None:
        """Take over the decisions on more pictures, in their order: which are `flagged`."""
        size = len(self._ring)
        for value in flagged:
            for length in self._lengths:
                if self._n >= length:
                    self._flagged[length] -= int(self._ring[(self._n - length) % size])
                self._flagged[length] += int(value)
            self._ring[self._n % size] = value
            self._n += 1

    def counts(self) -> dict[int, tuple[int, int]]:
        """Flagged pictures and pictures, by the length of the window."""
        return {n: (self._flagged[n], min(n, self._n)) for n in self._lengths}


@dataclass(frozen=True)
class _Maker:
    """Makes metrics that a registry collects."""

    client: Any  # the module prometheus_client
    registry: Any

    def counter(self, name: str, text: str, *labels: str) -> Any:
        return self.client.Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, mode: str, *labels: str) -> Any:
        return self.client.Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Any:
        return self.client.Histogram(name, text, buckets=buckets, registry=self.registry)


class Metrics:
    """The metrics of one worker."""

    def __init__(self, workers: int):
        prepare_folder(workers)
        try:
            import prometheus_client as client
        except ImportError:
            raise ConfigError(
                "metrics_port needs prometheus_client: pip install 'dfm-mlflow[monitor]'."
            ) from None
        self.registry = client.CollectorRegistry()
        self._shared = os.environ.get(FOLDER) if workers > 1 else None
        make = _Maker(client, self.registry)
        self._of_requests(make)
        self._of_the_model(make)
        self._of_the_log(make)
        self._last: dict[str, Counter[str]] = {}
        self._window, self._lock = Window(), threading.Lock()
        self._info: tuple[str, ...] | None = None
        for kind in ERRORS:  # a rate needs its zero
            self.errors.labels(kind)
        for reason in ("writer", "target", "picture"):
            self.dropped.labels(reason)

    def _of_requests(self, make: "_Maker") -> None:
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self.pictures = counter("dfm_pictures", "Pictures that were scored.")
        self.flagged = counter("dfm_flagged", "Pictures that were flagged.")
        self.requests = counter("dfm_requests", "Requests that reached the model.")
        self.errors = counter("dfm_errors", "Pictures and requests that failed, by kind.", "kind")
        self.request_seconds = histogram("dfm_request_seconds", "A request in the model.", _SECONDS)
        self.decode_seconds = histogram("dfm_decode_seconds", "Decoding a picture.", _SECONDS)
        self.queue_seconds = histogram("dfm_queue_seconds", "Waiting for the network.", _SECONDS)
        self.network_seconds = histogram("dfm_network_seconds", "A forward pass.", _SECONDS)
        self.batch_pictures = histogram("dfm_batch_pictures", "Pictures in one pass.", _BATCHES)
        self.p_values = histogram("dfm_p_value", "P-values of pictures.", _P_VALUES)
        self.queue = gauge("dfm_queue_requests", "Requests in the model.", "livesum")
        self.memory = gauge("dfm_device_memory_bytes", "Device memory in use.", "livesum", "kind")
        self.window_flagged = gauge(
            "dfm_window_flagged", "Flagged ones of the last pictures.", "livesum", "window"
        )
        self.window_pictures = gauge(
            "dfm_window_pictures", "The last pictures.", "livesum", "window"
        )

    def _of_the_model(self, make: "_Maker") -> None:
        counter, gauge = make.counter, make.gauge
        self.version = gauge("dfm_model_version", "Registered version, 0 if unknown.", "liveall")
        self.info = gauge(
            "dfm_model_info",
            "1 for what is served, 0 for what was.",
            "livemax",
            *("name", "version", "device", "precision", "sha256"),
        )
        self.alarm = gauge("dfm_alarm", "1 after an alarm.", "livemax", "kind")
        self.evidence = gauge(
            "dfm_alarm_evidence", "Evidence of the lifetime tests.", "livemax", "kind"
        )
        self.follow = counter("dfm_follow", "What became of versions that were followed.", "result")
        self.current = gauge("dfm_follow_current", "1 if the alias's version is served.", "livemin")

    def _of_the_log(self, make: "_Maker") -> None:
        counter = make.counter
        self.logged = counter("dfm_log_rows", "Rows that are in the log.")
        self.kept = counter("dfm_kept_pictures", "Pictures that are kept.")
        self.dropped = counter("dfm_log_dropped", "Rows and pictures that were dropped.", "reason")
        self.evicted = counter(
            "dfm_log_evicted_files", "Files that were removed for new ones.", "what"
        )
        self.webhook = counter("dfm_alarm_webhook", "Messages of alarms.", "result")

    def answered(self, p_values: Sequence[float], flagged: Sequence[bool], seconds: float) -> None:
        """Count one request that was answered."""
        self.requests.inc()
        self.request_seconds.observe(seconds)
        self.pictures.inc(len(p_values))
        self.flagged.inc(sum(flagged))
        for p in p_values:
            self.p_values.observe(p)
        with self._lock:
            self._window.add(flagged)
            for length, (n_flagged, n) in self._window.counts().items():
                self.window_flagged.labels(length).set(n_flagged)
                self.window_pictures.labels(length).set(n)

    def batch(self, n: int, waits: Sequence[float], seconds: float, admitted: int) -> None:
        """Count a forward pass."""
        self.batch_pictures.observe(n)
        self.network_seconds.observe(seconds)
        for wait in waits:
            self.queue_seconds.observe(wait)
        self.queue.set(admitted)

    def serves(self, name: str, version: str, device: str, precision: str, sha256: str) -> None:
        """Say what is served from now on."""
        labels = (name, version, device, precision, sha256[:12])
        if self._info and self._info != labels:
            self.info.labels(*self._info).set(0)
        self._info = labels
        self.info.labels(*labels).set(1)
        self.version.set(int(version) if version.isdigit() else 0)

    def add_up(self, what: str, metric: Any, totals: Mapping[str, float]) -> None:
        """Bring counters up to totals that begin at 0 again with another process."""
        last = self._last.setdefault(what, Counter())
        for label, total in totals.items():
            before = last[label]
            (metric.labels(label) if metric._labelnames else metric).inc(
                total - before if total >= before else total
            )
            last[label] = int(total)

    def collector(self) -> "CollectorRegistry":
        """A registry that gives the numbers of all workers, and the ratios that follow."""
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(AllWorkers(self.registry, self._shared))
        return registry

    def expose(self, port: int, host: str) -> None:
        """Answer at a port, in a thread; where another worker does, wait for its end."""
        threading.Thread(
            target=self._expose, args=(port, host), name="dfm-metrics", daemon=True
        ).start()

    def _expose(self, port: int, host: str) -> None:
        from prometheus_client import start_http_server

        said = False
        while True:
            try:
                start_http_server(port, host, self.collector())
            except OSError as error:
                if not said:
                    _logger.info(
                        "Port %s:%d is taken (%s): another worker or server answers there, and "
                        "this one takes over when it ends.",
                        host,
                        port,
                        error.strerror,
                    )
                said = True
                threading.Event().wait(_RETRY)
            else:
                _logger.info("Metrics at http://%s:%d/metrics", host, port)
                return
