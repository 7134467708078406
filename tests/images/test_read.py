import hashlib

import pytest

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import MAX_BYTES
from dfm_mlflow.images.read import look_at, read_picture
from dfm_mlflow.storage.store import S3Object

from ..detectors import pictures


def test_one_look_gives_digest_and_size(tmp_path):
    (data,) = pictures(1)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    found = look_at(path)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.size == (64, 64)
    path.write_bytes(b"noise")
    assert look_at(path).size is None


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be read \(No such file"):
        read_picture(tmp_path / "none.png")
    assert look_at(tmp_path / "none.png").sha256 == hashlib.sha256(b"").hexdigest()


def test_an_object_larger_than_any_picture_is_not_fetched(s3_store):
    huge = S3Object(f"s3://{s3_store.bucket}/x.png", "e", MAX_BYTES + 1)
    with pytest.raises(ImageError, match="more than the limit"):
        read_picture(huge)
    assert look_at(huge).sha256 != look_at(S3Object(huge.uri, "f", huge.size)).sha256
    assert s3_store.requests == []


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    path = tmp_path / "hole.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="more than the limit"):
        read_picture(path)
