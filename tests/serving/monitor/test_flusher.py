import threading
import time

import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.serving.monitor import flusher as module
from dfm_mlflow.serving.monitor.bounded import TooLargeError
from dfm_mlflow.serving.monitor.flusher import Flusher


class Store:
    """Takes rows, fails, or hangs, as it is told."""

    def __init__(self):
        self.parts, self.pictures, self.states = [], [], []
        self.error = None
        self.gate = threading.Event()
        self.gate.set()

    def _pass(self):
        assert self.gate.wait(30)
        if self.error:
            raise self.error

    def add_rows(self, rows):
        self._pass()
        self.parts.append(list(rows))

    def keep(self, sha256, data):
        self._pass()
        self.pictures.append((sha256, data))

    def write_state(self, slot, text):
        self._pass()
        self.states.append((slot, text))


@pytest.fixture
def store():
    store = Store()
    yield store
    store.gate.set()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def rows(n, first=0):
    return [[i] for i in range(first, first + n)]


def test_what_waits_at_the_end_is_written(store):
    flusher = Flusher(store, lambda: (1, "state"), seconds=1000)
    flusher.add(rows(3), [("ab", b"x")])
    flusher.add(rows(2, 3), [])
    assert flusher.close(10) == 0
    assert store.parts == [rows(5)]
    assert store.pictures == [("ab", b"x")]
    assert store.states == [(1, "state")]
    assert flusher.written == {"rows": 5, "pictures": 1}
    assert not +flusher.dropped


def test_parts_are_written_in_time_or_when_they_are_large(store, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 100)
    flusher = Flusher(store, seconds=1000)
    flusher.add(rows(250), [])
    until(lambda: len(store.parts) == 3)
    assert [len(part) for part in store.parts] == [100, 100, 50]
    flusher.add(rows(1), [])
    time.sleep(0.2)
    assert len(store.parts) == 3  # not for every row
    flusher.flush_soon()
    until(lambda: len(store.parts) == 4)
    flusher.close(10)
    quick = Flusher(store, seconds=0.1)
    quick.add(rows(1), [])
    until(lambda: len(store.parts) == 5)
    quick.close(10)


def test_a_target_that_fails_for_a_while_loses_nothing(store):
    store.error = DataError("The disk is full.")
    flusher = Flusher(store, seconds=0.05)
    flusher.add(rows(5), [])
    time.sleep(0.3)
    assert store.parts == []
    flusher.add(rows(2, 5), [])
    store.error = None
    until(lambda: flusher.written["rows"] == 7)
    assert [row for part in store.parts for row in part] == rows(7)
    assert flusher.close(10) == 0
    assert not +flusher.dropped


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_dead_target_costs_no_time_and_no_more_memory_and_every_row_is_counted(
    store, monkeypatch, how
):
    monkeypatch.setattr(module, "_MOST_ROWS", 1000)
    monkeypatch.setattr(module, "_MOST_BYTES", 50)
    if how == "fails":
        store.error = OSError(28, "No space left on device")
    else:
        store.gate.clear()
    flusher = Flusher(store, seconds=0.02)
    begun = time.monotonic()
    for i in range(300):
        flusher.add(rows(10, 10 * i), [("ab", bytes(10))])
    assert time.monotonic() - begun < 2
    assert len(flusher._rows) <= 1000
    assert len(flusher._pictures) <= 5
    begun = time.monotonic()
    lost = flusher.close(0.5)
    assert time.monotonic() - begun < 5
    assert flusher.dropped["target"] == 3000
    assert flusher.dropped["picture"] == 300
    assert 0 < lost <= 1005 + 10


def test_what_is_too_large_or_our_own_mistake_is_lost_alone(store, caplog):
    flusher = Flusher(store, seconds=0.02)
    for error in (TooLargeError(), RuntimeError("a mistake")):
        store.error = error
        flusher.add(rows(3), [("ab", b"x")])
        until(lambda: flusher.dropped["target"] >= 3 and flusher.dropped["picture"] >= 1)
        store.error = None
        flusher.add(rows(1), [])
        until(lambda: flusher.written["rows"] >= 1)
        flusher.dropped.clear()
        flusher.written.clear()
    flusher.close(10)
    assert "a mistake" in caplog.text


def test_a_state_that_did_not_change_is_not_written_again(store):
    flusher = Flusher(store, lambda: (0, "same"), seconds=0.02)
    for i in range(5):
        flusher.add(rows(1), [])
        until(lambda i=i: flusher.written["rows"] == i + 1)
    flusher.close(10)
    assert store.states == [(0, "same")]
