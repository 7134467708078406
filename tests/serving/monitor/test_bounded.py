import os

import pytest

from dfm_mlflow.serving.monitor.bounded import Bounded, TooLargeError
from dfm_mlflow.storage.dated_folder import DatedFolder

LIMIT = 16_000


def sizes(folder):
    return {file.name: file.size for file in folder.files("a")}


def bounded(folder, workers=1):
    return Bounded(folder, "a", LIMIT, workers, lambda file: (file.stamp, file.name))


def test_the_limit_holds_at_every_moment_and_the_oldest_go_first(tmp_path):
    folder = DatedFolder(str(tmp_path))
    store = bounded(folder)
    for i in range(200):
        store.put(f"a/{i:04d}", bytes(300))
        found = sizes(folder)
        assert sum(found.values()) <= LIMIT
        names = sorted(found)
        assert names[-1] == f"a/{i:04d}"
        assert [int(n[2:]) for n in names] == list(range(int(names[0][2:]), i + 1))
    assert len(found) > 40  # the room is used
    assert store.n_evicted == 200 - len(found)


def test_workers_that_know_nothing_of_each_other_hold_it_together(tmp_path):
    folder = DatedFolder(str(tmp_path))
    workers = [bounded(folder, 4) for _ in range(4)]
    for i in range(300):
        workers[i % 4].put(f"a/{i:04d}", bytes(200 + 37 * (i % 5)))
        assert sum(sizes(folder).values()) <= LIMIT
    assert sum(sizes(folder).values()) > LIMIT / 2


def test_large_files_make_their_room_and_larger_ones_are_refused(tmp_path):
    folder = DatedFolder(str(tmp_path))
    store = bounded(folder)
    for i in range(9):
        store.put(f"a/{i}", bytes(5000))
        assert sum(sizes(folder).values()) <= LIMIT
    assert sorted(sizes(folder)) == ["a/6", "a/7", "a/8"]
    with pytest.raises(TooLargeError):
        store.put("a/x", bytes(LIMIT + 1))
    assert sorted(sizes(folder)) == ["a/6", "a/7", "a/8"]


def test_a_clock_that_jumps_back_makes_nothing_old(tmp_path):
    folder = DatedFolder(str(tmp_path))
    folder.write("a/before", bytes(5000))
    store = bounded(folder)
    for i in range(9):
        store.put(f"a/{i}", bytes(5000))
        os.utime(tmp_path / f"a/{i}", (1e9 - i, 1e9 - i))  # ever earlier
    assert sorted(sizes(folder)) == ["a/6", "a/7", "a/8"]


def test_what_is_written_anew_is_new(tmp_path):
    folder = DatedFolder(str(tmp_path))
    store = bounded(folder)
    for name in ("a/1", "a/2", "a/3", "a/1", "a/4"):
        store.put(name, bytes(5000))
    assert sorted(sizes(folder)) == ["a/1", "a/3", "a/4"]
