"""Which of W workers this one is: the state of its alarm outlives it."""

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from dfm_mlflow.storage.dated_folder import DatedFolder
from dfm_mlflow.storage.served_log import STATE


class Slot:
    """A number below the number of workers that no other living worker of a log has.

    Locks lie in the log's own folder, or, where that is in S3, in the temporary folder of this
    machine. They end with the process, whatever ends it.

    Parameters
    ----------
    folder : DatedFolder
        Of the log.
    workers : int

    Attributes
    ----------
    number : int or None
        None as long as all are taken.
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
        """Take a free number, if there is one and none is taken yet.

        Returns
        -------
        int or None
            :attr:`number`.
        """
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
