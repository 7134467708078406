import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.serving.monitor.log_store import LogStore
from dfm_mlflow.storage.dated_folder import DatedFolder
from dfm_mlflow.storage.served_log import COLUMNS, kept_name, part_number, parts, tables


def row(i):
    return [1e9 + i, "3", "ab" * 32, 1.5, 0.25, False, "good", "pass", None, 2.5, None]


def test_a_log_is_read_in_the_order_in_which_it_was_written(tmp_path):
    store = LogStore(str(tmp_path), 1, 1, 1)
    for start in range(0, 12, 3):
        store.add_rows([row(i) for i in range(start, start + 3)])
    (tmp_path / "scores" / "notes.txt").write_text("not ours")
    assert [part_number(p.name) for p in parts(DatedFolder(str(tmp_path)))] == [1, 2, 3, 4]
    read = list(tables(str(tmp_path)))
    assert [table.column_names for table in read] == [list(COLUMNS)] * 4
    assert [t.timestamp() - 1e9 for table in read for t in table["time"].to_pylist()] == list(
        range(12)
    )


def test_what_is_no_log_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="holds no log"):
        list(tables(str(tmp_path)))
    LogStore(str(tmp_path), 1, 1, 1).add_rows([row(0)])
    (part,) = (tmp_path / "scores").iterdir()
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(DataError, match=r"is not part of a log \(Arrow\w+\): remove it"):
        list(tables(str(tmp_path)))


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"\x89PNG\r", "png"),
        (b"\xff\xd8\xff", "jpg"),
        (b"RIFF....WEBP", "webp"),
        (b"II*\0", "tif"),
        (b"P6 2 2", "ppm"),
        (b"../../etc", "bin"),
    ],
)
def test_a_kept_picture_is_named_by_its_digest_and_its_bytes_alone(data, suffix):
    digest = "3b" + "0" * 62
    assert kept_name(digest, data) == f"kept/3b/{digest}.{suffix}"


def test_other_names_are_no_parts():
    assert part_number("scores/part-0000000007-20261127T040000Z-3f2a90c1.parquet") == 7
    for name in ("part-7.parquet", ".tmp-3f.parquet", "part-0000000007-x.parquet", "../x"):
        assert part_number(name) == 0
