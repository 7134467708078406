import os

import pandas as pd
import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.forget import forget, moment
from dfm_mlflow.serving.monitor.log_store import LogStore

DAY = 86_400
START = moment("2026-11-01").timestamp()


def row(day, i):
    return [
        START + day * DAY + i,
        "3",
        digest(day, i),
        1.0,
        0.01,
        True,
        "c",
        "reject",
        None,
        2.0,
        None,
    ]


def digest(day, i):
    return f"{day:02d}{i:02d}" * 16


@pytest.fixture(params=["disk", "s3"])
def log(request, tmp_path):
    """Ten days, two pictures a day, three days in a part."""
    address = str(tmp_path / "log")
    if request.param == "s3":
        address = f"s3://{request.getfixturevalue('s3_store').bucket}/log"
    store = LogStore(address, 5, 5, 1)
    for first in range(0, 10, 3):
        days = range(first, min(10, first + 3))
        store.add_rows([row(day, i) for day in days for i in range(2)])
        for day in days:
            for i in range(2):
                store.keep(digest(day, i), b"\x89PNG" + bytes([day, i]))
    return store, address


def left(store):
    kept = {f.name.rpartition("/")[2][:2] for f in store.folder.files("kept")}
    times = []
    for part in store.folder.files("scores"):
        from io import BytesIO

        times += pd.read_parquet(BytesIO(store.folder.read(part.name)))["time"].tolist()
    return sorted(map(int, kept)), sorted({t.day - 1 for t in times})


def test_pictures_before_a_date_are_gone_and_the_rest_is_there(log):
    store, address = log
    found = forget(address, "2026-11-05")
    assert (found.n_pictures, found.n_rows, found.n_pictures_left) == (8, 0, 12)
    assert left(store) == (list(range(4, 10)), list(range(10)))
    assert forget(address, "2026-11-05").n_pictures == 0


def test_rows_before_a_date_are_gone_to_the_second(log):
    store, address = log
    found = forget(address, "2026-11-05T00:00:01Z", "rows")
    assert (found.n_pictures, found.n_rows) == (0, 9)
    assert left(store) == (list(range(10)), list(range(4, 10)))
    found = forget(address, "2027-01-01T00:00:00+01:00", "all")
    assert (found.n_pictures, found.n_rows, found.n_pictures_left) == (20, 11, 0)
    assert left(store) == ([], [])


def test_a_picture_without_rows_goes_by_its_file(tmp_path):
    store = LogStore(str(tmp_path), 5, 5, 1)
    for day in (1, 8):
        store.keep(digest(day, 0), b"\x89PNG")
        (path,) = tmp_path.glob(f"kept/*/{digest(day, 0)}.png")
        os.utime(path, (START + day * DAY,) * 2)
    assert forget(str(tmp_path), "2026-11-05").n_pictures == 1
    assert left(store)[0] == [8]


def test_a_damaged_part_is_left_and_said(tmp_path, caplog):
    store = LogStore(str(tmp_path), 5, 5, 1)
    for day in (1, 2):
        store.add_rows([row(day, 0)])
    first, _ = sorted((tmp_path / "scores").iterdir())
    first.write_bytes(b"PAR1")
    assert forget(str(tmp_path), "2027-01-01", "all").n_rows == 1
    assert f"{first} is damaged and is left as it is" in caplog.text


def test_the_command_line_says_what_went(tmp_path):
    LogStore(str(tmp_path), 5, 5, 1).add_rows([row(1, 0)])
    arguments = ["forget", str(tmp_path), "--before", "2027-01-01", "--what", "all"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert " ".join(done.output.split()) == (
        f"Deleted from {tmp_path}, older than 2027-01-01T00:00:00Z: 0 pictures and 1 rows; 0 "
        "pictures are left."
    )


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="is not a date: give one such as 2026-11-27"):
        forget(str(tmp_path), "yesterday")
    with pytest.raises(ConfigError, match="give pictures, rows, all"):
        forget(str(tmp_path), "2026-11-27", "everything")
    with pytest.raises(DataError, match="holds neither kept pictures nor rows"):
        forget(str(tmp_path), "2026-11-27")
