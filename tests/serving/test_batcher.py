import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from dfm_mlflow.serving.batcher import Batcher, OverloadedError


class Network:
    """Gives back its pixels as the only map; notes its batches; waits while its gate is shut."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, pixels):
        self.entered.set()
        assert self.gate.wait(20)
        values = pixels[:, 0, 0, 0].tolist()
        self.batches.append(values)
        if 255 in values:
            raise ValueError("poison")
        return [pixels.float()]


def pixels(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@contextmanager
def batcher_of(network, batch_size=4, max_wait=0.0, queue_size=100):
    batcher = Batcher(network, batch_size=batch_size, max_wait=max_wait, queue_size=queue_size)
    try:
        yield batcher
    finally:
        network.gate.set()
        batcher.close()
        batcher._worker.join(20)
        assert not batcher._worker.is_alive()


def ask(batcher, *values):
    with batcher.admit():
        (maps,) = batcher.run(pixels(*values))
    return maps[:, 0, 0, 0].tolist()


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def in_order(pool, batcher, network, requests):
    """Hand requests in one after the other while the network is held still by the first."""
    network.gate.clear()
    futures = [pool.submit(ask, batcher, *requests[0])]
    assert network.entered.wait(20)
    for n, request in enumerate(requests[1:], 1):
        futures.append(pool.submit(ask, batcher, *request))
        wait_until(lambda n=n: len(batcher._queue) == n)
    network.gate.set()
    return futures


def test_waiting_requests_share_a_batch_and_each_gets_its_own():
    network = Network()
    with ThreadPoolExecutor(8) as pool, batcher_of(network) as batcher:
        futures = in_order(pool, batcher, network, [(1,), (2,), (3, 4), (5,), (6,), (7,)])
        assert [f.result() for f in futures] == [[1], [2], [3, 4], [5], [6], [7]]
    assert network.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_sixty_four_threads_never_swap():
    network = Network()
    with ThreadPoolExecutor(64) as pool, batcher_of(network, 16, 0.002) as batcher:
        asked = [[i % 200] * (1 + i % 3) for i in range(2000)]
        assert list(pool.map(lambda values: ask(batcher, *values), asked)) == asked
    assert max(map(len, network.batches)) <= 16
    assert len(network.batches) < 2000


def test_more_than_a_batch_is_cut_and_put_together():
    network = Network()
    with batcher_of(network) as batcher:
        assert ask(batcher, *range(10)) == list(range(10))
    assert network.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_large_request_does_not_starve_a_small_one():
    network = Network()
    with ThreadPoolExecutor(4) as pool, batcher_of(network) as batcher:
        network.gate.clear()
        large = pool.submit(ask, batcher, *range(40))
        assert network.entered.wait(20)
        small = pool.submit(ask, batcher, 99)
        wait_until(lambda: batcher._queue)
        network.gate.set()
        assert small.result() == [99]
        assert large.result() == list(range(40))
    assert network.batches.index([99]) == 1


def test_one_that_is_alone_never_waits():
    with batcher_of(Network(), max_wait=10.0) as batcher:
        start = time.monotonic()
        for i in range(20):
            assert ask(batcher, i) == [i]
        assert time.monotonic() - start < 5


def test_one_waits_for_another_that_is_coming_and_no_longer_than_agreed():
    network = Network()
    with ThreadPoolExecutor(2) as pool, batcher_of(network, max_wait=10.0) as batcher:
        with batcher.admit():
            first = pool.submit(ask, batcher, 1)
            wait_until(lambda: batcher._queue)
            time.sleep(0.05)
            assert not first.done()
            assert batcher.run(pixels(2))[0][0, 0, 0, 0] == 2
        assert first.result() == [1]
        # one that fails before it hands in is not waited for either
        with batcher.admit():
            second = pool.submit(ask, batcher, 3)
            wait_until(lambda: batcher._queue)
        start = time.monotonic()
        assert second.result() == [3]
        assert time.monotonic() - start < 5
    assert network.batches == [[1, 2], [3]]
    with (
        batcher_of(Network(), max_wait=0.05) as batcher,
        ThreadPoolExecutor(1) as pool,
        batcher.admit(),
    ):
        assert pool.submit(ask, batcher, 4).result(timeout=5) == [4]


def test_an_error_reaches_its_own_caller_and_the_worker_lives_on():
    network = Network()
    with ThreadPoolExecutor(4) as pool, batcher_of(network) as batcher:
        futures = in_order(pool, batcher, network, [(1,), (2,), (255,), (3,)])
        assert [futures[i].result() for i in (0, 1, 3)] == [[1], [2], [3]]
        with pytest.raises(ValueError, match="poison"):
            futures[2].result()
        assert ask(batcher, 4) == [4]
    assert network.batches == [[1], [2, 255, 3], [2], [255], [3], [4]]


def test_a_network_that_loses_rows_is_an_error():
    with batcher_of(Network()) as batcher:
        batcher._forward = lambda pixels: [pixels[:-1]]
        with pytest.raises(RuntimeError, match="other than 1 maps"):
            ask(batcher, 1)


def test_a_full_queue_refuses_at_once_and_takes_again_later():
    network = Network()
    with ThreadPoolExecutor(4) as pool, batcher_of(network, queue_size=3) as batcher:
        futures = in_order(pool, batcher, network, [(1,), (2,)])
        assert [f.result() for f in futures] == [[1], [2]]
        network.gate.clear()
        held = [pool.submit(ask, batcher, i) for i in (3, 4, 5)]
        wait_until(lambda: batcher._admitted == 3)
        start = time.monotonic()
        with pytest.raises(OverloadedError):
            ask(batcher, 6)
        assert time.monotonic() - start < 1
        network.gate.set()
        assert [f.result() for f in held] == [[3], [4], [5]]
        assert ask(batcher, 7) == [7]


def test_close_serves_what_waits_and_refuses_what_comes():
    network = Network()
    with ThreadPoolExecutor(4) as pool, batcher_of(network) as batcher:
        futures = in_order(pool, batcher, network, [(1,), (2,)])
        batcher.close()
        assert [f.result() for f in futures] == [[1], [2]]
        with pytest.raises(RuntimeError, match="load the model again"):
            ask(batcher, 3)


def test_a_process_may_end_while_the_worker_is_at_work():
    """A daemon thread that the interpreter stops inside torch aborts the process."""
    code = """
import torch
from dfm_mlflow.serving.batcher import Batcher, _Job

def forward(pixels):
    for _ in range(200):
        torch.randn(300, 300) @ torch.randn(300, 300)
    return [pixels]

batcher = Batcher(forward, batch_size=4, max_wait=0.0, queue_size=4)
# without a thread that waits for the maps: it would end inside torch itself, freeing them
with batcher._changed:
    batcher._queue.append(_Job(torch.zeros(1, 3, 8, 8)))
    batcher._changed.notify()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
