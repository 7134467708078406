"""Which of W workers this one is: the state of its alarm outlives it."""

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from dfm_mlflow.errors import DfmError
from dfm_mlflow.serving.monitor.log_store import LogStore
from dfm_mlflow.storage.dated_folder import DatedFolder
from dfm_mlflow.storage.served_log import STATE

_WAIT = 60.0  # seconds, for a worker that was here before and still writes

_logger = logging.getLogger(__name__)


class Slot:
    """A number below the number of workers that no other living worker of a log has.

    Locks lie in the log's own folder, or, where that is in S3, in the temporary folder of this
    machine. They end with the process, whatever ends it.
    """

    def __init__(self, folder: DatedFolder, workers: int):
        self._workers = workers
        if folder.path is not None:
            self._locks = folder.path / STATE
        else:
            name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            self._locks = Path(tempfile.gettempdir()) / f"dfm-locks-{os.getuid()}" / name
        self.number: int | None = None
        self._file: int | None = None

    def take(self) -> int | None:
        """Take a free number, if there is one and none is taken yet."""
        if self.number is not None:
            return self.number
        for number in range(self._workers):
            try:
                self._locks.mkdir(parents=True, exist_ok=True)
                name = self._locks / f"worker-{number}.lock"
                file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError:  # a full or missing disk: nothing is kept there anyway
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                continue
            self.number, self._file = number, file
            return number
        return None

    def release(self) -> None:
        """Give the number back."""
        if self._file is not None:
            os.close(self._file)
        self.number = self._file = None


class LastLife:
    """The state that an earlier worker left, read in a thread: its target may hang."""

    def __init__(self, store: LogStore, workers: int):
        self._store = store
        self.ready = threading.Event()
        self.text: str | None = None
        self.slot = Slot(store.folder, workers)
        threading.Thread(target=self._read, name="dfm-last-life", daemon=True).start()

    def _read(self) -> None:
        until = time.monotonic() + _WAIT
        while (number := self.slot.take()) is None and time.monotonic() < until:
            time.sleep(0.5)
        try:
            if number is not None:
                self.text = self._store.read_state(number)
            else:
                _logger.warning(
                    "Another server writes to %s, or its folder cannot be written: this worker's "
                    "state of the alarm is not kept. Give each server a folder of its own.",
                    self._store.folder,
                )
        except (DfmError, OSError, ValueError) as error:
            _logger.warning("The state of the alarm cannot be read: %s", error)
        self.ready.set()
