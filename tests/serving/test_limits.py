"""Requests that want more than one may cost."""

import io
import threading

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.serving.limits import LateError, Turn, check_size, read_parquet
from dfm_mlflow.serving.pyfunc import PyfuncModel

from ..detectors import pictures
from ..servers import parquet

MEGABYTE = 2**20


def written(values, kind=None, name="image", **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(values, kind or pa.binary())}), buffer, **options)
    return buffer.getvalue()


@given(st.lists(st.none() | st.binary(max_size=50), max_size=30), st.sampled_from(["snappy", None]))
def test_reading_is_pandas_reading(images, compression):
    body = written(images, compression=compression or "none")
    mine = read_parquet(body, 100, MEGABYTE)
    assert mine["image"].tolist() == pd.read_parquet(io.BytesIO(body))["image"].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": True, "dictionary_pagesize_limit": 2**30},
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
    ],
    ids=["dictionary", "shared prefix"],
)
def test_few_bytes_that_stand_for_many_rows_are_not_spread_out(options):
    body = written([b"\x89PNG" + bytes(4 * MEGABYTE)] * 100, compression="snappy", **options)
    assert len(body) < MEGABYTE
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(ConfigError, match="limit of 16777216: send several"):
        read_parquet(body, 1000, 16 * MEGABYTE)
    assert pool.max_memory() - before < 100 * MEGABYTE  # spread out it is 400


@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli", "lz4"])
def test_codecs_that_hold_thousands_of_times_what_was_sent_are_refused(codec):
    with pytest.raises(ConfigError, match="compressed by .*: write it with Snappy"):
        read_parquet(written([b"x"], compression=codec), 10, MEGABYTE)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"PAR1", "not a whole parquet"),
        (written([b"x"] * 50)[:-20], "not a whole parquet"),
        (written([b"x"], name="picture"), "no column 'image' of bytes"),
        (written([1], pa.int64()), "no column 'image' of bytes"),
        (written([[b"x"]], pa.list_(pa.binary())), "no column 'image' of bytes"),
        (written([b"x"] * 11, row_group_size=1), "11 row groups, more than the 10"),
        (written([b"x"] * 11), "more than the limit of 10"),
    ],
)
def test_what_is_no_request_gets_a_sentence(body, words):
    with pytest.raises(ConfigError, match=words):
        read_parquet(body, 10, MEGABYTE)


def test_limits_are_reached_and_not_passed():
    check_size([b"12345"] * 2, 2, 10)
    with pytest.raises(ConfigError, match="3 pictures, more than the limit of 2"):
        check_size([b""] * 3, 2, 10)
    with pytest.raises(ConfigError, match="11 bytes, more than the limit of 10"):
        check_size([b"12345", "123456"], 2, 10)


def test_a_turn_gives_its_slot_back_and_ends_with_its_time():
    slots = threading.BoundedSemaphore(1)
    turn = Turn(slots, 60)
    for _ in range(2):
        with turn:
            assert not slots.acquire(blocking=False)
    with slots, pytest.raises(LateError), Turn(slots, 0.05):
        pass
    with pytest.raises(LateError), Turn(slots, -1):
        pass
    assert slots.acquire(blocking=False)


@pytest.fixture
def in_server(monkeypatch):
    monkeypatch.setenv(scoring_server._SERVER_MODEL_PATH, "model")


def test_a_server_refuses_large_requests_and_a_program_may_send_them(detector, in_server):
    settings = ServingSettings(max_pictures=2, threads=1)
    model = PyfuncModel(detector, settings)
    three = pd.DataFrame({"image": pictures(3)})
    with pytest.raises(MlflowException, match="more than the limit of 2") as refused:
        model.predict(three)
    assert refused.value.get_http_status_code() == 400
    model._in_server = False
    assert len(model.predict(three)) == 3


def test_no_picture_is_decoded_for_a_client_that_no_longer_waits(detector, in_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    model = PyfuncModel(detector, ServingSettings(threads=1))
    decode = "dfm_mlflow.images.decode.Decoder.decode"
    monkeypatch.setattr(decode, lambda *_: pytest.fail("it was decoded"))
    for n in (1, 5):
        with pytest.raises(MlflowException, match="send fewer pictures") as refused:
            model.predict(pd.DataFrame({"image": pictures(n)}))
        assert refused.value.get_http_status_code() == 504


def test_the_server_s_reader_is_ours(detector, in_server, monkeypatch):
    from dfm_mlflow.mlflow_plugin import _compat

    monkeypatch.setattr(scoring_server, "parse_parquet_input", None)
    _compat.read_parquet_by(lambda body: read_parquet(body, 10, MEGABYTE))
    read = scoring_server.parse_parquet_input(parquet_input=io.BytesIO(parquet([b"x"])))
    assert read["image"].tolist() == [b"x"]
