"""Faults of a real store: what is tried again, and what is one sentence."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import s3, store
from dfm_mlflow.storage.store import S3Folder

BYTES = np.random.default_rng(0).bytes(300_000)


def object_of(uri):
    return store.find(uri)


def test_a_throttled_store_is_asked_again_ever_more_slowly(s3_store, pauses):
    found = object_of(s3_store.put("x.png", BYTES))
    s3_store.faults = [("GET", "x.png", "503")] * 4
    assert found.read_bytes() == BYTES
    assert len(s3_store.gets("x.png")) == 5
    assert len(pauses) == 4
    s3_store.faults = [("GET", "list-type", "503")] * 2
    assert [p.name for p in S3Folder(f"s3://{s3_store.bucket}").iterdir()] == ["x.png"]


def test_a_store_that_stays_overloaded_ends_in_one_sentence(s3_store, pauses):
    found = object_of(s3_store.put("x.png", BYTES))
    s3_store.faults = [("GET", "x.png", "503")] * 100
    with pytest.raises(DataError, match=rf"{found} .* still overloaded after 6 tries \(SlowDown\)"):
        found.read_bytes()
    assert len(s3_store.gets("x.png")) == s3.TRIES
    # the ceiling of the wait doubles: 1, 2, 4, 8, 16 seconds, each with jitter
    assert all(wait <= 2**i for i, wait in enumerate(pauses))


def test_a_broken_body_goes_on_where_it_broke(s3_store, pauses):
    found = object_of(s3_store.put("x.png", BYTES))
    s3_store.faults = [
        ("GET", "x.png", ("cut", 100_000)),
        ("GET", "x.png", ("cut", 150_000)),
        ("GET", "x.png", "503"),
    ]
    assert found.read_bytes() == BYTES
    starts = [int(h["Range"][6:].split("-")[0]) for h in s3_store.gets("x.png")]
    assert starts[0] == 0
    assert 0 < starts[1] <= 100_000
    assert starts[1] < starts[2] == starts[3] <= starts[1] + 150_000
    assert {h["If-Match"] for h in s3_store.gets("x.png")} == {f'"{found.etag}"'}


def test_a_body_that_never_grows_is_given_up(s3_store, pauses):
    found = object_of(s3_store.put("x.png", BYTES))
    s3_store.faults = [("GET", "x.png", ("cut", 0))] * 100
    with pytest.raises(DataError, match=f"{found} breaks off at byte 0 .* 6 times in a row"):
        found.read_bytes()
    assert len(s3_store.gets("x.png")) == s3.TRIES


def test_a_large_object_is_read_in_parallel_ranges(s3_store, pauses, monkeypatch):
    monkeypatch.setattr(s3, "PART", 100_000)
    found = object_of(s3_store.put("w.pth", BYTES + b"!"))
    s3_store.faults = [("GET", "w.pth", ("cut", 70_000)), ("GET", "w.pth", "503")]
    assert found.read_bytes() == BYTES + b"!"
    ends = {h["Range"].split("-")[1] for h in s3_store.gets("w.pth")}
    assert ends == {"99999", "199999", "299999", "300000"}


def test_an_empty_object_is_no_picture_and_no_failure(s3_store):
    assert object_of(s3_store.put("x.png", b"")).read_bytes() == b""


@pytest.mark.parametrize("change", ["overwritten", "removed", "overwritten in the middle"])
def test_an_object_that_changes_after_the_listing_is_noticed(s3_store, pauses, change):
    found = object_of(s3_store.put("x.png", BYTES))
    if change == "overwritten":
        s3_store.put("x.png", BYTES[::-1])
    elif change == "removed":
        s3_store.client.delete_object(Bucket=s3_store.bucket, Key="x.png")
    else:
        overwrite = ("GET", "x.png", lambda: s3_store.put("x.png", BYTES[::-1]))
        s3_store.faults = [("GET", "x.png", ("cut", 100_000)), overwrite]
    with pytest.raises(DataError, match=f"{found} changed after it was listed"):
        found.read_bytes()


def test_a_store_that_ignores_ranges_is_refused_not_believed(s3_store, pauses):
    found = object_of(s3_store.put("x.png", BYTES))
    s3_store.faults = [("GET", "x.png", ("cut", 100_000)), ("GET", "x.png", "whole")]
    with pytest.raises(DataError, match="300000 bytes came where .* does not know ranges"):
        found.read_bytes()


def test_no_credentials_is_one_sentence(s3_store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"^There are no credentials for s3://\S+: set AWS_"):
        load_catalog(f"s3://{s3_store.bucket}/x", ["a"])


def test_an_unreachable_store_is_one_sentence(s3_store, monkeypatch, pauses):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"cannot be reached at http://127.0.0.1:9 after 6") as e:
        load_catalog("s3://bucket/x", ["a"])
    assert "\n" not in str(e.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(DataError, match="cannot be read .* AWS_"):
        load_catalog("s3://bucket/x", ["a"])


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://no-such-bucket-here/x", "bucket of s3://no-such-bucket-here/x/ does not exist"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://UPPER_case!/x", "cannot be read .* check"),
    ],
)
def test_wrong_addresses_are_one_sentence(s3_store, uri, words):
    with pytest.raises(DataError, match=words) as caught:
        load_catalog(uri, ["a"])
    assert "\n" not in str(caught.value)


def test_a_refusal_tells_the_code_and_no_secret(s3_store):
    found = object_of(s3_store.put("x.png", BYTES))
    error = s3.boto.ClientError(
        {"Error": {"Code": "InvalidAccessKeyId", "Message": "AKIASECRET"}}, "GetObject"
    )
    said = str(s3._data_error(str(found), error, listed=True))
    assert "InvalidAccessKeyId" in said
    assert "AKIASECRET" not in said


def test_local_work_does_not_import_boto3(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    code = (
        "import sys; from dfm_mlflow.data.catalog import load_catalog; "
        f"load_catalog({str(tmp_path)!r}, ['a']).digest; print('boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
