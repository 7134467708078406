import time
from datetime import datetime, timezone

import pandas as pd
import pytest

from dfm_mlflow.serving.monitor.bounded import TooLargeError
from dfm_mlflow.serving.monitor.log_store import LogStore, to_parquet
from dfm_mlflow.storage.served_log import COLUMNS

GOOD = [1764216000.25, "3", "ab" * 32, 1.5, 0.25, False, "good", "pass", None, 2.5, None]
BROKEN = [1764216001.0, None, None, None, None, None, None, None, "It is not a picture.", 0.5, None]


def test_rows_come_back_as_they_were(tmp_path):
    store = LogStore(str(tmp_path), 1, 1, 1)
    store.add_rows([GOOD, BROKEN])
    table = pd.read_parquet(tmp_path / "scores")
    assert list(table) == list(COLUMNS)
    assert table["time"][0] == pd.Timestamp("2025-11-27T04:00:00.25Z")
    read = [[None if pd.isna(v) else v for v in row] for row in table.itertuples(index=False)]
    assert [row[1:] for row in read] == [GOOD[1:], BROKEN[1:]]


def test_types_do_not_depend_on_the_values():
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [
        pq.read_table(pa.BufferReader(to_parquet(rows))).schema
        for rows in ([GOOD], [BROKEN], [GOOD, BROKEN], [])
    ]
    assert kinds[1:] == kinds[:1] * 3


def test_parts_of_a_clock_that_jumps_keep_their_order(tmp_path, monkeypatch):
    for i, clock in enumerate([2e9, 1e9, 3e9, 5e8]):  # each a server's life
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        LogStore(str(tmp_path), 1, 1, 1).add_rows([[float(i), *GOOD[1:]]])
    names = sorted(p.name for p in (tmp_path / "scores").iterdir())
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    read = [(pd.read_parquet(tmp_path / "scores" / n)["time"][0] - epoch).seconds for n in names]
    assert read == [0, 1, 2, 3]


def test_the_oldest_rows_make_room(tmp_path):
    store = LogStore(str(tmp_path), 1, 1, 1)
    rows = [[float(i), *GOOD[1:2], f"{i * 7919:064x}", i / 7, *GOOD[4:]] for i in range(8000)]
    for i in range(20):
        store.add_rows([[1e9 * i + r[0], *r[1:]] for r in rows])
        assert sum(p.stat().st_size for p in (tmp_path / "scores").iterdir()) <= 2**20
    assert store.n_evicted["scores"] > 0
    newest = pd.read_parquet(tmp_path / "scores")["time"].max().timestamp()
    assert newest == pytest.approx(19e9 + 7999)


def test_pictures_lie_under_their_digest_and_are_bounded_too(tmp_path):
    store = LogStore(str(tmp_path), 1, 1, 1)
    for i in range(30):
        store.keep(f"{i:02x}" * 32, b"\x89PNG" + bytes(100_000))
    kept = sorted(p.name[:2] for p in (tmp_path / "kept").rglob("*.png"))
    assert kept == [f"{i:02x}" for i in range(30 - len(kept), 30)]
    assert 7 <= len(kept) <= 10
    assert store.n_evicted["kept"] == 30 - len(kept)
    with pytest.raises(TooLargeError):
        store.keep("ff" * 32, bytes(2**20 + 1))


def test_the_state_of_an_alarm_comes_back_to_its_own_worker(tmp_path):
    store = LogStore(str(tmp_path), 1, 1, 2)
    assert store.read_state(0) is None
    store.write_state(0, "zero")
    store.write_state(1, "one")
    store.write_state(0, "zero, later")
    again = LogStore(str(tmp_path), 1, 1, 2)
    assert [again.read_state(i) for i in range(3)] == ["zero, later", "one", None]
