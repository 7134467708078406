"""One version to another while requests run."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.serving.engine import Engine, Engines, Observers, Version

from ..detectors import fit, pictures

IMAGES = pictures(6, 7)


@pytest.fixture(scope="module")
def detectors(detector):
    return {"1": detector, "2": fit({"stripes": pictures(20, 50)})}


def engine_of(detectors, number):
    return Engine(detectors[number], ServingSettings(), Version(number, "stripes", number))


def test_a_request_is_answered_by_one_version_and_none_is_lost(detectors):
    expected = {n: d.score(IMAGES)["anomaly_score"].to_numpy() for n, d in detectors.items()}
    assert not np.isclose(expected["1"], expected["2"], rtol=1e-3).any()
    engines = Engines(engine_of(detectors, "1"))
    stop, answers = threading.Event(), []

    def ask():
        while not stop.is_set():
            with engines.lease() as engine, engine.admit():
                scores = engine.score(IMAGES)["anomaly_score"].to_numpy()
                answers.append((engine.version.number, scores))

    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(ask) for _ in range(16)]
        for i in range(5):
            time.sleep(0.02)
            engines.swap(engine_of(detectors, "21"[i % 2]))
        stop.set()
        for future in running:
            future.result()
    assert {number for number, _ in answers} == {"1", "2"}
    for number, scores in answers:
        np.testing.assert_allclose(scores, expected[number], rtol=1e-4)


def test_the_old_one_ends_after_its_last_request_and_is_freed(detectors):
    engines = Engines(engine_of(detectors, "1"))
    worker, gone = engines.current.batcher._worker, weakref.ref(engines.current)
    with ThreadPoolExecutor(1) as pool:
        with engines.lease() as engine:
            swap = pool.submit(engines.swap, engine_of(detectors, "2"))
            while engines.current is engine:
                time.sleep(0.01)
            with engines.lease() as other:
                assert other.version.number == "2"
            assert not swap.done()
            with engine.admit():
                assert len(engine.score(IMAGES)) == 6  # it still answers
            del engine
        swap.result(20)
    worker.join(20)
    assert not worker.is_alive()
    gc.collect()
    assert gone() is None


def test_what_warms_it_up_is_not_observed(detectors):
    batches, decodings = [], []
    observers = Observers(lambda *seen: batches.append(seen), decodings.append)
    engine = Engine(detectors["1"], ServingSettings(batch_size=4), observers=observers)
    engine.warm_up()
    assert batches == decodings == []
    with engine.admit():
        engine.score(IMAGES)
    assert [n for n, *_ in batches] == [4, 2]
    for _, waits, seconds, admitted in batches:
        assert 0 < seconds < 60
        assert admitted == 1
        assert all(0 <= wait < 60 for wait in waits)
    assert len(decodings) == 6
    assert min(decodings) > 0
