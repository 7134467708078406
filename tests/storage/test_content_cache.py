import hashlib
import os

from dfm_mlflow.storage import store
from dfm_mlflow.storage.content_cache import ContentCache

from .test_s3 import BYTES


def test_contents_are_fetched_once_while_etag_and_size_stay(s3_store):
    uri = s3_store.put("x.png", BYTES)
    for _ in range(3):
        assert store.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 1
    s3_store.put("x.png", BYTES[::-1])
    assert store.read(uri) == BYTES[::-1]
    assert len(s3_store.gets("x.png")) == 2


def test_a_damaged_entry_costs_one_download(s3_store, tmp_path):
    uri = s3_store.put("x.png", BYTES)
    store.read(uri)
    (entry,) = (tmp_path / "cache/content").glob("*/*")
    stored = bytearray(entry.read_bytes())
    stored[1000] ^= 1
    entry.write_bytes(stored)
    assert store.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 2


def test_an_unwritable_cache_costs_speed_only(s3_store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path / "file"))
    uri = s3_store.put("x.png", BYTES)
    assert store.read(uri) == store.read(uri) == BYTES
    assert len(s3_store.gets("x.png")) == 2
    assert caplog.text.count("cannot be written") == 1


def test_the_cache_keeps_its_limit(tmp_path):
    cache = ContentCache(tmp_path / "c", limit=20_000)
    keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(30)]
    for key in keys:
        cache.put(key, b"x" * 2000)
    assert sum(p.stat().st_size for p in (tmp_path / "c").glob("*/*")) <= 20_000
    assert cache.get(keys[-1]) == b"x" * 2000
    assert cache.get(keys[0]) is None


def test_another_user_s_entry_is_read_and_left_as_it_is(tmp_path, monkeypatch):
    cache = ContentCache(tmp_path / "c")
    cache.put("ab" * 32, b"content")
    path = cache.path("ab" * 32)

    def refuse(*given, **named):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(type(path), "unlink", refuse)
    assert cache.get("ab" * 32) == b"content"
    path.write_bytes(b"damaged")
    assert cache.get("ab" * 32) is None
