import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from botocore.paginate import Paginator
from PIL import Image

from dfm_mlflow.errors import DataError, ImageError
from dfm_mlflow.images import s3, storage
from dfm_mlflow.images.catalog import load_catalog
from dfm_mlflow.images.decode import MAX_BYTES
from dfm_mlflow.images.storage import S3Folder, S3Object

BYTES = np.random.default_rng(0).bytes(300_000)


def object_of(uri):
    return storage.find(uri)


def test_an_object_looks_like_a_path(s3_store):
    (found,) = S3Folder(s3_store.put("a/b/x.1.png", b"abc").rpartition("/")[0]).iterdir()
    assert str(found) == f"s3://{s3_store.bucket}/a/b/x.1.png"
    assert (found.name, found.stem, found.suffix) == ("x.1.png", "x.1", ".png")
    assert (found.parent.name, found.size) == ("b", 3)
    assert (found.is_file(), found.is_dir()) == (True, False)
    assert found.read_bytes() == storage.read(found) == storage.read(str(found)) == b"abc"
    assert found == storage.find(str(found))


def test_folders_are_listed_once_and_walked_deeply(s3_store):
    for key in ("d/a.png", "d/sub/b.png", "d/sub/", "d/odd name+ü#?%20.png", "dd/c.png"):
        s3_store.put(key, key.encode())
    root = S3Folder(f"s3://{s3_store.bucket}/d/")
    assert sorted(p.name for p in root.iterdir()) == ["a.png", "odd name+ü#?%20.png", "sub"]
    assert (root / "sub").is_dir()
    assert not (root / "none").is_dir()
    listings = len(s3_store.requests)
    assert [p.name for p in (root / "sub").iterdir()] == ["b.png"]
    assert len(s3_store.requests) == listings
    assert [p.name for p in root.walk()] == ["a.png", "odd name+ü#?%20.png", "b.png"]
    assert {p.read_bytes() for p in root.walk()} == {
        f"d/{name}".encode() for name in ("a.png", "odd name+ü#?%20.png", "sub/b.png")
    }
    assert {p.name for p in S3Folder(f"s3://{s3_store.bucket}").iterdir()} == {"d", "dd"}


def test_more_than_one_page_is_listed(s3_store, monkeypatch):
    for i in range(5):
        s3_store.put(f"p/{i}.png", b"x")
    paginate = Paginator.paginate

    def by_two(self, **given):
        return paginate(self, **given, PaginationConfig={"PageSize": 2})

    monkeypatch.setattr(Paginator, "paginate", by_two)
    assert len(S3Folder(f"s3://{s3_store.bucket}/p").iterdir()) == 5
    assert sum("list-type" in path for _, path, _ in s3_store.requests) == 3


def test_the_same_catalog_from_a_folder_and_from_s3(s3_store, mvtec_like):
    uri = s3_store.upload(mvtec_like, "mvtec")
    local = load_catalog(str(mvtec_like), ["stripes", "bands"])
    remote = load_catalog(uri, ["stripes", "bands"])
    assert remote.source == uri

    def facts(catalog, root):
        return [
            (
                str(i.path).removeprefix(root),
                i.category,
                i.split,
                i.label,
                i.mask and str(i.mask).removeprefix(root),
            )
            for i in catalog.items
        ]

    assert facts(remote, uri) == facts(local, str(mvtec_like))
    assert remote.digest == local.digest
    read = len(s3_store.gets())
    assert read == len(remote.items)
    assert [i.path.read_bytes() for i in remote.items] == [i.path.read_bytes() for i in local.items]
    assert len(s3_store.gets()) == read  # from the cache
    flat = load_catalog(f"{uri}/stripes/train/good", ["stripes"])
    assert (len(flat.train), flat.test) == (24, [])


@pytest.mark.parametrize(
    ("prefix", "categories", "words"),
    [
        ("none", ["stripes"], "/none does not exist"),
        ("m", ["missing"], "neither the folder missing/train/good nor pictures .* stripes"),
        ("m", ["stripes", "other"], "no MVTec-layout folder .* for other"),
        ("m/stripes", ["stripes"], "give the folder above it"),
    ],
)
def test_unusable_prefixes_are_refused(s3_store, prefix, categories, words):
    for i in range(2):
        s3_store.put(f"m/stripes/train/good/{i}.png", b"x")
    with pytest.raises(DataError, match=words):
        load_catalog(f"s3://{s3_store.bucket}/{prefix}", categories)


# -- faults of the store ---------------------------------------------------------------------------


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


def test_a_missing_object_is_one_sentence(s3_store):
    uri = f"s3://{s3_store.bucket}/none.png"
    with pytest.raises(DataError, match=f"^{uri} does not exist"):
        storage.read(uri)
    with pytest.raises(DataError, match="names a bucket"):
        storage.find(f"s3://{s3_store.bucket}")


def test_a_refusal_tells_the_code_and_no_secret(s3_store):
    found = object_of(s3_store.put("x.png", BYTES))
    error = s3.boto.ClientError(
        {"Error": {"Code": "InvalidAccessKeyId", "Message": "AKIASECRET"}}, "GetObject"
    )
    said = str(s3._explained(str(found), error, listed=True))
    assert "InvalidAccessKeyId" in said
    assert "AKIASECRET" not in said


def test_an_object_larger_than_any_picture_is_not_fetched(s3_store):
    huge = S3Object(f"s3://{s3_store.bucket}/x.png", "e", MAX_BYTES + 1)
    with pytest.raises(ImageError, match="more than the limit"):
        huge.read_bytes()
    (digest,) = storage.digests([huge])
    assert digest != storage.digests([S3Object(huge.uri, "f", huge.size)])[0]
    assert s3_store.requests == []


# -- the cache -------------------------------------------------------------------------------------


def test_contents_are_fetched_once_while_etag_and_size_stay(s3_store):
    uri = s3_store.put("x.png", BYTES)
    for _ in range(3):
        assert storage.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 1
    s3_store.put("x.png", BYTES[::-1])
    assert storage.read(uri) == BYTES[::-1]
    assert len(s3_store.gets("x.png")) == 2


def test_a_damaged_entry_costs_one_download(s3_store, tmp_path):
    uri = s3_store.put("x.png", BYTES)
    storage.read(uri)
    (entry,) = (tmp_path / "cache/content").glob("*/*")
    stored = bytearray(entry.read_bytes())
    stored[1000] ^= 1
    entry.write_bytes(stored)
    assert storage.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 2


def test_an_unwritable_cache_costs_speed_only(s3_store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path / "file"))
    uri = s3_store.put("x.png", BYTES)
    assert storage.read(uri) == storage.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 2
    assert caplog.text.count("cannot be written") == 1


def test_the_cache_keeps_its_limit(tmp_path):
    cache = storage.ContentCache(tmp_path / "c", limit=20_000)
    keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(30)]
    for key in keys:
        cache.put(key, b"x" * 2000)
    assert sum(p.stat().st_size for p in (tmp_path / "c").glob("*/*")) <= 20_000
    assert cache.get(keys[-1]) == b"x" * 2000
    assert cache.get(keys[0]) is None


# -- what uses it ----------------------------------------------------------------------------------


def test_weights_from_s3(s3_store):
    import torch
    from safetensors.torch import save

    from dfm_mlflow.errors import WeightsError
    from dfm_mlflow.network.weights import load_weights

    state = {"conv1.weight": torch.arange(6.0).view(2, 3)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for name, data in {"w.safetensors": save(state), "w.pth": buffer.getvalue()}.items():
        loaded = load_weights(s3_store.put(f"weights/{name}", data), "resnet18", 0)
        assert (loaded.id, loaded.sha256) == (f"file:{name}", hashlib.sha256(data).hexdigest())
        assert torch.equal(loaded.take(set(state))["conv1.weight"], state["conv1.weight"])
    with pytest.raises(WeightsError, match=r"cannot be fetched: s3://\S+none.pth does not exist"):
        load_weights(f"s3://{s3_store.bucket}/none.pth", "resnet18", 0)
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_weights(s3_store.put("bad.safetensors", b"noise"), "resnet18", 0)


def test_local_work_does_not_import_boto3(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    code = (
        "import sys; from dfm_mlflow.images.catalog import load_catalog; "
        f"load_catalog({str(tmp_path)!r}, ['a']).digest; print('boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
