"""Follow an alias of the registry: load the version that it names, try it, and swap.

MLflow hands a server a local folder, which says nothing of an alias; so it must be named. A server
that cannot reach the registry, or is offered a version that it cannot use, goes on as it is.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.artifact.save_load import load_detector
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ArtifactError, DfmError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.golden import deviation, load_golden
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel
from dfm_mlflow.serving.engine import Engine, Engines, Observers, Version
from dfm_mlflow.serving.monitor.memory import give_back, lack_of_room

_PREFIX = "dfm-follow-"
_LONGEST = 600.0  # seconds between two tries of a version that could not be loaded

_logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """A version that is not used, for a reason that will not go away by itself."""

    def __init__(self, sentence: str, result: str = "refused", lasting: bool = True):
        super().__init__(sentence)
        self.result, self.lasting = result, lasting


class Follower(threading.Thread):
    """Looks at the registry, in a thread of its own."""

    def __init__(
        self,
        settings: ServingSettings,
        engines: Engines,
        observers: Observers,
        on_change: Callable[[Engine], None],
        on_look: Callable[[str | None, bool], None],
    ):
        super().__init__(name="dfm-follow", daemon=True)
        self._name, _, self._alias = settings.follow.removeprefix("models:/").partition("@")
        self._settings, self._engines, self._observers = settings, engines, observers
        self._on_change, self._on_look = on_change, on_look
        self._refused: dict[str, float] = {}  # until when a version is not tried again
        self._pause = settings.follow_seconds
        self._said, self._waits = "", False

    def run(self) -> None:
        """Look until the process ends."""
        sweep()
        while True:
            self.look()
            time.sleep(self._settings.follow_seconds)

    def look(self) -> None:
        """Look once, and swap where the alias points to another version."""
        try:
            result = self._look()
        except RefusedError as error:
            self._say(f"{error} The previous version keeps serving.")
            self._on_look(error.result, False)
        except Exception as error:  # of the registry, of its store, of a library below
            self._say(
                f"The registry could not be asked for {self._settings.follow} "
                f"({type(error).__name__}): the current version keeps serving."
            )
            self._on_look("unreachable", False)
        else:
            self._on_look(result, result is not None or not self._waits)

    def _look(self) -> str | None:
        wanted = MlflowClient().get_model_version_by_alias(self._name, self._alias)
        number, served = str(wanted.version), self._engines.current.version
        self._waits = False
        if served.number == number and served.name == self._name:
            self._say("")
            return None
        if self._refused.get(number, 0) > time.monotonic():
            self._waits = True
            return None
        try:
            swapped = self._take(wanted)
        except RefusedError as error:
            if error.lasting:
                self._refused = {number: float("inf")}
            else:
                self._pause = min(2 * self._pause, _LONGEST)
                self._refused = {number: time.monotonic() + self._pause}
            raise
        self._refused, self._pause, self._said = {}, self._settings.follow_seconds, ""
        return "swapped" if swapped else None

    def _take(self, wanted: ModelVersion) -> bool:
        """Load a version and let it answer; says whether it is another model."""
        begun = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        try:
            engine = self._build(wanted, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if engine is None:  # the same model under a number
            served = self._engines.current
            served.version = Version(served.version.digest, self._name, str(wanted.version))
            self._on_change(served)
            return False
        ready = time.monotonic()
        self._on_change(engine)
        before = self._engines.current.version.number or "the version before"
        self._engines.swap(engine)
        _logger.info(
            "Version %s of %s answers in place of %s: ready after %.1f s, the last request of the "
            "old one was answered %.1f s later.",
            wanted.version,
            self._name,
            before,
            ready - begun,
            time.monotonic() - ready,
        )
        del engine
        give_back()
        return True

    def _build(self, wanted: ModelVersion, folder: Path) -> Engine | None:
        """Load, warm and try a version; None where it is the model that is served."""
        address = f"models:/{self._name}/{wanted.version}"
        root = Path(_compat.download(artifact_uri=address, output_path=str(folder)))
        settings = self._settings
        engine: Engine | None = None
        try:
            declared = read_mlmodel(root)
            if declared.sha256 == self._engines.current.version.digest:
                return None
            device = self._engines.current.detector.extractor.device
            if lack := lack_of_room(declared, device):
                raise RefusedError(lack, "memory", lasting=False)
            detector = load_detector(
                declared.folder,
                expected_sha256=declared.sha256,
                device=settings.device,
                precision=settings.precision,
                batch_size=settings.batch_size,
            )
            version = Version(declared.sha256, self._name, str(wanted.version))
            engine = Engine(detector, settings, version, self._observers)
            engine.warm_up()
            self._try_golden(engine, wanted)
        except RefusedError:
            self._drop(engine)
            raise
        except (MemoryError, torch.OutOfMemoryError):
            self._drop(engine)
            raise RefusedError(
                f"There is too little memory for {address} beside what is served.", "memory", False
            ) from None
        except DfmError as error:
            self._drop(engine)
            raise RefusedError(f"{address} cannot be used. {error}") from None
        except Exception as error:
            self._drop(engine)
            raise RefusedError(
                f"{address} cannot be used ({type(error).__name__}: {error})."
            ) from None
        return engine

    def _try_golden(self, engine: Engine, wanted: ModelVersion) -> None:
        """Compare scores with those of the training, where its run can be reached."""
        try:
            if not wanted.run_id:
                raise ArtifactError("It has no run.")
            golden = load_golden(wanted.run_id)
        except Exception as error:
            _logger.info(
                "Version %s is taken without a look at its golden pictures, which cannot be "
                "reached: %s",
                wanted.version,
                " ".join(str(error).split())[:200],
            )
            return
        largest, tolerance = deviation(engine.detector, golden)
        if largest > tolerance:
            raise RefusedError(
                f"Version {wanted.version} scores its golden pictures otherwise than its training "
                f"did (by {largest:.2g}, where {tolerance:.0e} is allowed)."
            )

    @staticmethod
    def _drop(engine: Engine | None) -> None:
        if engine is not None:
            engine.close()
        del engine
        give_back()

    def _say(self, sentence: str) -> None:
        """Log a sentence once, until there is another one."""
        if sentence and sentence != self._said:
            _logger.warning("%s", sentence)
        if not sentence and self._said:
            _logger.info("%s points to the version that is served.", self._settings.follow)
        self._said = sentence


def sweep() -> None:
    """Remove downloads of processes that were killed while they swapped."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
