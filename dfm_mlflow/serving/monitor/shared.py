"""Metrics that several workers share: their folder, and how they are put together."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dfm_mlflow.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_logger = logging.getLogger(__name__)


def prepare_folder(workers: int) -> None:
    """Name the folder that several workers share, before the client library is imported.

    It belongs to the process that started them, and is the same for a worker that takes the place
    of another. Folders of servers that are gone are removed.
    """
    if workers < 2 or os.environ.get(FOLDER):
        return
    if "prometheus_client.values" in sys.modules:
        _logger.warning(
            "prometheus_client was imported before the model: each worker shows its own numbers "
            "alone. Set %s to an empty folder before the server starts.",
            FOLDER,
        )
        return
    home = Path(tempfile.gettempdir())
    for old in home.glob(f"dfm-metrics-{os.getuid()}-*"):
        pid, start = old.name.split("-")[-2:]
        if _started(int(pid)) != start:
            shutil.rmtree(old, ignore_errors=True)
    supervisor = os.getppid()
    folder = home / f"dfm-metrics-{os.getuid()}-{supervisor}-{_started(supervisor)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to somebody else: remove it, or set {FOLDER}.")
    os.environ[FOLDER] = str(folder)


def _started(pid: int) -> str:
    """When a process began, in ticks since boot, so that a number that is used again differs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


class AllWorkers:
    """Collects the metrics of all workers, and adds ``dfm_flagged_ratio``."""

    def __init__(self, own: "CollectorRegistry", folder: str | None):
        self._own, self._folder = own, folder

    def collect(self) -> "Iterable[Metric]":
        """Give every metric as it is now."""
        from prometheus_client.metrics_core import GaugeMetricFamily

        counts: dict[str, dict[str, float]] = {}
        for metric in self._metrics():
            if metric.name in ("dfm_window_flagged", "dfm_window_pictures"):
                counts[metric.name] = {s.labels["window"]: s.value for s in metric.samples}
            yield metric
        ratio = GaugeMetricFamily(
            "dfm_flagged_ratio",
            "Share of flagged pictures among the last ones of each worker.",
            labels=["window"],
        )
        for window, n in counts.get("dfm_window_pictures", {}).items():
            if n:
                ratio.add_metric([window], counts["dfm_window_flagged"].get(window, 0) / n)
        yield ratio

    def _metrics(self) -> "Iterable[Metric]":
        if self._folder is None:
            return self._own.collect()
        from prometheus_client import CollectorRegistry, multiprocess

        for file in Path(self._folder).glob("gauge_live*_*.db"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                multiprocess.mark_process_dead(int(pid), self._folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
        return registry.collect()
