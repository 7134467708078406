import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from dfm_mlflow.core import threads
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.threads import MOST_BESIDE, side_by_side, single_threaded

CONTROLLER = ThreadpoolController()


def blas_threads():
    return {pool["num_threads"] for pool in CONTROLLER.info() if pool["user_api"] == "blas"}


def set_threads(n):
    """In a thread of its own, which then ends and has no say in what others set."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(CONTROLLER.limit, limits=n, user_api="blas").result()


@pytest.fixture
def three_threads():
    """A number that is neither 1 nor what another test has left."""
    before = max(blas_threads(), default=1)
    set_threads(3)
    if blas_threads() != {3}:
        pytest.skip("this BLAS has no threads to limit")
    yield
    set_threads(before)


def test_limits_that_overlap_between_threads_are_restored(three_threads):
    """A enters, B enters, A leaves, B leaves: what A found comes back, and not before B leaves."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = {}

    def first():
        with single_threaded():
            first_in.set()
            assert second_in.wait(10)
        first_out.set()

    def second():
        assert first_in.wait(10)
        with single_threaded():
            second_in.set()
            assert first_out.wait(10)
            seen["inside, alone"] = blas_threads()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result(timeout=20)
    assert seen == {"inside, alone": {1}}
    assert blas_threads() == {3}


def test_overlapping_fits_leave_the_threads_as_they_were(three_threads):
    x = np.random.default_rng(0).normal(size=(30, 40))
    folds = assign_folds(30, 5)
    expected = crossfit(x, folds, 0.9).fre
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:  # new threads: they end before what they have set
            found = list(pool.map(lambda _: crossfit(x, folds, 0.9).fre, range(4)))
        assert all(np.allclose(fre, expected) for fre in found)
    assert blas_threads() == {3}


def test_contexts_nest_and_an_error_leaves_nothing_behind(three_threads):
    def fails():
        with single_threaded():
            with single_threaded():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
            raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        fails()
    assert blas_threads() == {3}


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_results_of_work_side_by_side_are_in_the_order_of_the_values(cores, monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: cores)
    begun = []

    def work(value):
        begun.append(value)
        time.sleep(0.01 * (value % 3))
        return -value

    assert side_by_side(work, range(6), [3, 5, 1, 2, 4, 6]) == [0, -1, -2, -3, -4, -5]
    assert begun[:1] == ([0] if cores == 1 else [5])  # the largest first
    assert side_by_side(work, [], []) == []


def test_large_work_has_all_threads_and_this_one(three_threads, monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)

    def work(_):
        return threading.current_thread() is threading.main_thread(), blas_threads()

    assert side_by_side(work, range(2), [1, MOST_BESIDE + 1]) == [(True, {3})] * 2
    assert side_by_side(work, range(2), [1, MOST_BESIDE]) == [(False, {1})] * 2
    assert blas_threads() == {3}


def test_the_first_error_by_order_is_raised_when_all_have_ended(monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: 3)
    ended = []

    def work(value):
        time.sleep(0.05 * (3 - value))
        ended.append(value)
        raise ValueError(value)

    with pytest.raises(ValueError, match="0"):
        side_by_side(work, range(3), [1, 1, 1])
    assert ended == [2, 1, 0]


def test_after_an_error_nothing_more_is_begun(monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)
    begun = []

    def work(value):
        begun.append(value)
        time.sleep(0.1)
        if not value:
            raise ValueError(value)

    with pytest.raises(ValueError, match="0"):
        side_by_side(work, range(20), range(20, 0, -1))
    assert len(begun) < 8
