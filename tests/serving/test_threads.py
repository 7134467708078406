"""Threads and pools of a server, in this process."""

import asyncio
import gc
import io
import logging
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch
from mlflow.pyfunc import scoring_server

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.serving import threads as module


def test_settings_are_checked():
    assert ServingSettings.parse(None) == ServingSettings.parse({"batch_size": None, "other": 1})
    for key, value in {"batch_size": 0, "max_wait_ms": -1, "threads": "many"}.items():
        with pytest.raises(ConfigError, match=f"model_config {key}="):
            ServingSettings.parse({key: value})


def test_processors_are_shared_by_workers(monkeypatch):
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    cpu = torch.device("cpu")
    assert module.network_threads(ServingSettings(), cpu) == torch.get_num_threads()
    monkeypatch.setenv("__pyfunc_model_path__", "model")  # as in MLflow's server
    assert module.network_threads(ServingSettings(), cpu) == 8
    monkeypatch.setattr(module.sys, "argv", ["uvicorn", "--workers", "2", "app"])
    assert module.network_threads(ServingSettings(), cpu) == 4
    monkeypatch.setattr(module, "cpu_count", lambda: 3)
    assert module.network_threads(ServingSettings(), cpu) == 1
    assert module.network_threads(ServingSettings(threads=5), cpu) == 5
    assert module.network_threads(ServingSettings(), torch.device("cuda")) == 1
    assert module.network_threads(ServingSettings(queue_size=0), cpu) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torch has read it
    assert module.network_threads(ServingSettings(), cpu) == torch.get_num_threads()


@pytest.mark.parametrize(
    ("argv", "environment", "count"),
    [
        ([], {}, 1),
        ([], {"WEB_CONCURRENCY": "3"}, 3),
        ([], {"WEB_CONCURRENCY": "3", "MLFLOW_MODELS_WORKERS": "4"}, 4),
        (["--workers", "2"], {"WEB_CONCURRENCY": "3", "MLFLOW_MODELS_WORKERS": "4"}, 2),
        (["--workers"], {"WEB_CONCURRENCY": "3"}, 3),
        (["--workers", "many"], {"MLFLOW_MODELS_WORKERS": "0", "WEB_CONCURRENCY": "-1"}, 1),
    ],
)
def test_the_command_line_knows_the_workers_better_than_the_environment(
    monkeypatch, argv, environment, count
):
    for name in ("WEB_CONCURRENCY", "MLFLOW_MODELS_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "argv", ["uvicorn", *argv])
    assert module.worker_count() == count
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    assert module.share_of_processors() == 8 // count
    monkeypatch.setattr(module, "cpu_count", lambda: 1)
    assert module.share_of_processors() == 1


@pytest.fixture
def in_server(monkeypatch):
    """This process says that it is MLflow's server; what that changes is put back."""
    monkeypatch.setenv("__pyfunc_model_path__", "model")
    reader = scoring_server.parse_parquet_input
    monkeypatch.setattr(scoring_server, "parse_parquet_input", reader)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


@contextmanager
def unheard():
    """The package's logger as in a process that set up no logging."""
    log = logging.getLogger("dfm_mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "propagate", False)
        patch.setattr(log, "handlers", [])
        level = log.level
        yield log
        log.setLevel(level)


def threads_at_once(n):
    """Whether the loop's own pool runs so many calls at the same time."""
    meet = threading.Barrier(n)

    async def all_of_them():
        calls = [asyncio.to_thread(meet.wait, 20) for _ in range(n)]
        return len(await asyncio.gather(*calls))

    return all_of_them()


def test_a_server_admits_all_that_its_queue_takes(in_server):
    async def serve():
        module.prepare_server(ServingSettings(queue_size=50), lambda body: f"read {body!r}")
        return await threads_at_once(54)  # MLflow's own pool has 32 at most

    assert asyncio.run(serve()) == 54
    assert scoring_server.parse_parquet_input(io.BytesIO(b"PAR1")) == "read b'PAR1'"


def test_a_server_logs_what_nobody_else_would(in_server):
    with unheard() as log:
        for _ in range(2):  # once, however many models are loaded; here there is no loop
            module.prepare_server(ServingSettings(), lambda body: None)
        assert len(log.handlers) == 1
        assert log.isEnabledFor(logging.INFO)


def test_what_a_server_has_loaded_is_not_looked_at_again(in_server):
    before = gc.get_freeze_count()
    module.prepare_server(ServingSettings(), lambda body: None)
    assert gc.get_freeze_count() > before + 10_000
    own = torch.nn.Module()
    own.itself = own
    known = weakref.ref(own)
    del own
    gc.collect()
    assert known() is None  # what came later is


def test_a_server_without_a_queue_keeps_its_pool(in_server):
    async def pool():
        module.prepare_server(ServingSettings(queue_size=0), lambda body: None)
        return asyncio.get_running_loop()._default_executor

    assert asyncio.run(pool()) is None


def test_another_process_is_left_as_it_is(monkeypatch):
    monkeypatch.delenv("__pyfunc_model_path__", raising=False)
    reader, threads = scoring_server.parse_parquet_input, torch.get_num_threads()

    async def pool():
        module.prepare_server(ServingSettings(), lambda body: None)
        return asyncio.get_running_loop()._default_executor

    frozen = gc.get_freeze_count()
    with unheard() as log:
        assert asyncio.run(pool()) is None
        assert log.handlers == []
    assert gc.get_freeze_count() == frozen
    module.calm_request_threads(ServingSettings(), torch.device("cpu"))
    assert scoring_server.parse_parquet_input is reader
    assert torch.get_num_threads() == threads


def test_a_request_s_thread_has_one_thread_and_the_network_s_its_own(in_server):
    seen = {}

    def network(ready, go):
        module.prepare_worker(3, torch.device("cpu"))
        ready.set()
        assert go.wait(20)
        seen["network"] = torch.get_num_threads()

    def request():
        seen["request"] = torch.get_num_threads()

    ready, go = threading.Event(), threading.Event()
    worker = threading.Thread(target=network, args=(ready, go))
    worker.start()
    assert ready.wait(20)
    module.calm_request_threads(ServingSettings(), torch.device("cpu"))
    asked = threading.Thread(target=request)
    asked.start()
    asked.join(20)
    go.set()
    worker.join(20)
    assert seen == {"network": 3, "request": 1}
    # without a queue the network runs in the request's thread, with the number it was given
    module.calm_request_threads(ServingSettings(queue_size=0, threads=2), torch.device("cpu"))
    assert torch.get_num_threads() == 2


def test_the_worker_of_a_gpu_stays_on_it(monkeypatch):
    chosen, threads = [], torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in (torch.device("cpu"), torch.device("cuda:1")):
        module.prepare_worker(threads, device)
    assert chosen == [torch.device("cuda:1")]
