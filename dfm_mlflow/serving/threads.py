"""What a served model does to the process that serves it."""

import gc
import logging
import os
import sys
from collections.abc import Callable

import pandas as pd
import torch
from joblib import cpu_count

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.mlflow_plugin import _compat


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
    """
    if not _compat.in_scoring_server():
        return
    log = logging.getLogger("dfm_mlflow")
    if not log.hasHandlers():  # MLflow and uvicorn set up their own loggers only
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    # Else each full collection looks at all objects of torch and MLflow, for a quarter of a second
    # in which nothing is answered. The model comes later, and can be collected.
    gc.freeze()
    if settings.queue_size:
        _compat.widen_thread_pool(settings.queue_size + 4)
    _compat.read_parquet_by(read_request)


def prepare_worker(threads: int, device: torch.device) -> None:
    """Make the calling thread the one that runs the network.

    torch keeps the number of threads by thread, but a thread takes over the last one that was set
    anywhere when it first asks for it; so it is made to ask now, and later calls elsewhere leave
    it alone. Pinned memory belongs to the thread's current device: on another one it would cost a
    CUDA context there.
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
    """
    if _compat.in_scoring_server():
        torch.set_num_threads(1 if settings.queue_size else network_threads(settings, device))
