import os
import time

from dfm_mlflow.storage.cache_folder import CacheFolder


def test_what_a_killed_process_left_behind_is_removed_and_nothing_else(tmp_path):
    cache = CacheFolder(tmp_path, limit=10**9)
    cache.write("abcd", lambda path: path.write_bytes(b"kept"))
    old, new = tmp_path / "ab/.tmp-old", tmp_path / "ab/.tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - 4000
    os.utime(old, (long_ago, long_ago))
    os.utime(cache.path("abcd"), (long_ago, long_ago))
    cache.trim()
    assert cache.path("abcd").read_bytes() == b"kept"
    assert new.exists()  # perhaps another process writes it now
    assert not old.exists()
