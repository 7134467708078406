"""What a served model can be told, and what it does to the process that serves it."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from joblib import cpu_count
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.mlflow_plugin import _compat


class ServingSettings(BaseModel):
    """Keys of ``model_config``; a null means the default.

    Attributes
    ----------
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:N``; by default ``MLFLOW_DEFAULT_PREDICTION_DEVICE``, then CUDA,
        then CPU.
    precision : str, optional
        Must be the one that the model was calibrated in.
    batch_size : int
        Pictures in one forward pass at most.
    max_wait_ms : float
        How long a picture waits at most for those of other requests that are on their way.
    queue_size : int
        Requests in the model at the same time; further ones are refused with 503. 0 turns the
        joining of requests off, and every request runs the network by itself.
    threads : int, optional
        Threads of one forward pass on a CPU. By default a server process takes its share of the
        processors, and any other process keeps torch's own number.
    max_pictures : int
        Pictures in one request to a server.
    max_megabytes : int
        Bytes of the pictures of one request to a server, in units of 2**20.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    device: str | None = None
    precision: str | None = None
    batch_size: int = Field(16, ge=1)
    max_wait_ms: float = Field(5.0, ge=0, le=10_000)
    queue_size: int = Field(64, ge=0)
    threads: int | None = Field(None, ge=1)
    max_pictures: int = Field(1000, ge=1)
    max_megabytes: int = Field(64, ge=1)

    @classmethod
    def parse(cls, config: dict[str, Any] | None) -> "ServingSettings":
        """Read `config`, a ``model_config``; None, also as a value, leaves the default.

        Raises
        ------
        ConfigError
            For a value that a key cannot have.
        """
        given = {key: value for key, value in (config or {}).items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"model_config {first['loc'][0]}={first['input']!r} is refused: {first['msg']}."
            ) from None


def worker_count() -> int:
    """Server processes that share this machine, as uvicorn was told."""
    given = [os.environ.get(name, "") for name in ("MLFLOW_MODELS_WORKERS", "WEB_CONCURRENCY")]
    if "--workers" in sys.argv[:-1]:  # a worker process sees its parent's arguments
        given.insert(0, sys.argv[sys.argv.index("--workers") + 1])
    return next((int(text) for text in given if text.isdigit() and int(text) > 0), 1)


def share_of_processors() -> int:
    """Processors for one server process, by affinity and the quota of its container."""
    return max(1, int(cpu_count()) // worker_count())


def network_threads(settings: ServingSettings, device: torch.device) -> int:
    """Choose the threads of one forward pass on a `device`, as the `settings` have it."""
    if settings.threads:
        return settings.threads
    if not _compat.in_scoring_server() or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    # requests that are not joined run side by side already
    joined = settings.queue_size > 0
    return share_of_processors() if device.type == "cpu" and joined else 1


def prepare_server(
    settings: ServingSettings, read_request: Callable[[bytes], pd.DataFrame]
) -> None:
    """Make the process of MLflow's scoring server ready; in any other process do nothing.

    The server's thread pool (min(32, processors + 4) threads) is the place where requests would
    pile up unseen until each gives 504. With more threads than the model admits, every request
    reaches the model, which scores it or refuses it at once.

    Parameters
    ----------
    settings : ServingSettings
    read_request : callable
        Reads the body of a request that is a parquet file.
    """
    if not _compat.in_scoring_server():
        return
    log = logging.getLogger("dfm_mlflow")
    if not log.hasHandlers():  # MLflow and uvicorn set up their own loggers only
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    if settings.queue_size:
        _compat.widen_thread_pool(settings.queue_size + 4)
    _compat.read_parquet_by(read_request)


def prepare_worker(threads: int, device: torch.device) -> None:
    """Make the calling thread the one that runs the network.

    torch keeps the number of threads by thread, but a thread takes over the last one that was set
    anywhere when it first asks for it; so it is made to ask now, and later calls elsewhere leave
    it alone. Pinned memory belongs to the thread's current device: on another one it would cost a
    CUDA context there.

    Parameters
    ----------
    threads : int
        Of one forward pass.
    device : torch.device
        Where the network is.
    """
    torch.set_num_threads(threads)
    torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)


def calm_request_threads(settings: ServingSettings, device: torch.device) -> None:
    """Give each request's thread one thread of torch's; in a server process only.

    A request's thread resizes pictures and multiplies small matrices. By default each would bring a
    team of threads as large as the machine, and the teams would fight for the processors with the
    one of the network. Threads take this number on their first use of torch, so the network's own
    thread, which has chosen already, keeps its number.

    Parameters
    ----------
    settings : ServingSettings
    device : torch.device
        Where the network is.
    """
    if _compat.in_scoring_server():
        torch.set_num_threads(1 if settings.queue_size else network_threads(settings, device))
