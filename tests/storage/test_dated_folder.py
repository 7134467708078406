import os
import time

import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.dated_folder import DatedFolder


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return DatedFolder(str(tmp_path / "log"))
    return DatedFolder(f"s3://{request.getfixturevalue('s3_store').bucket}/some/log/")


def test_what_is_written_is_listed_read_and_removed(folder):
    assert folder.files("a") == []
    before = time.time()
    for name, data in {"a/1.bin": b"one", "a/b/2.bin": b"two!", "c/3.bin": b""}.items():
        folder.write(name, data)
    found = {file.name: file for file in folder.files("a")}
    assert {name: file.size for name, file in found.items()} == {"a/1.bin": 3, "a/b/2.bin": 4}
    assert all(abs(file.stamp - before) < 60 for file in found.values())
    assert folder.read("a/b/2.bin") == b"two!"
    folder.write("a/b/2.bin", b"again")
    assert folder.read("a/b/2.bin") == b"again"
    folder.delete("a/1.bin")
    folder.delete("a/1.bin")  # another worker was faster
    assert [file.name for file in folder.files("a")] == ["a/b/2.bin"]


def test_drafts_are_no_files_and_those_of_the_dead_are_removed(tmp_path):
    folder = DatedFolder(str(tmp_path))
    for name, age in {".tmp-young.bin": 5, ".tmp-old.bin": 10_000}.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        path = tmp_path / "a" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / ".tmp-young.bin")
    assert folder.files("a") == []
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".tmp-young.bin", "link"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    folder = DatedFolder(str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written .*: check its folder and the space"):
        folder.write("a/1.bin", b"x")
    with pytest.raises(DataError, match="names no bucket"):
        DatedFolder("s3://")
