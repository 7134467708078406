"""``mlflow models serve`` for as long as a ``with`` block lasts; shared by the examples."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import started


@contextmanager
def served(uri: str) -> Iterator[str]:
    """Serve a model on a free port of this machine; gives the server's URL."""
    command = ["models", "serve", "-m", uri, "--env-manager", "local"]
    with tempfile.TemporaryDirectory(prefix="dfm-served-") as folder:
        log = Path(folder, "server.log")
        with started(command, "/ping", log, folder=Path.cwd()) as url:
            yield url
