import os

import pytest

from dfm_mlflow.storage.store import S3Folder
from dfm_mlflow.storage.walk import AGAIN, HIDDEN, NOWHERE, is_hidden, walk

from ..trees import plant


def places(found):
    return [file.place for file in found.files]


def test_hidden_names_are_left_out_and_counted_here_and_in_s3(tmp_path, s3_store):
    root = plant(
        tmp_path / "a",
        "1.png",
        "b/2.png",
        ".hidden.png",
        "b/._2.png",
        "b/Thumbs.db",
        "b/.ipynb_checkpoints/2-checkpoint.png",
        "b/.ipynb_checkpoints/3-checkpoint.png",
        "__MACOSX/b/2.png",
    )
    uri = s3_store.upload(root, "a")
    for found in (walk(root), walk(S3Folder(uri))):
        assert places(found) == ["1.png", "b/2.png"]
        assert found.left_out == {HIDDEN: 5}  # a hidden folder counts as one


def test_hidden_is_what_begins_with_a_dot_or_belongs_to_a_system():
    names = (".DS_Store", "._a.png", "Thumbs.db", "THUMBS.DB", "desktop.ini", ".ipynb_checkpoints")
    assert all(map(is_hidden, names))
    assert not any(map(is_hidden, ("a.png", "thumbs", "_a.png", "a.b")))


def test_links_to_folders_are_followed_once(tmp_path):
    root = plant(tmp_path / "a", "real/1.png")
    far = plant(tmp_path / "far", "2.png")
    for name, target in {
        "again": root / "real",  # listed where it lies
        "far": far,
        "further": far,  # a second link to one folder
        "up": root,  # loops
        "real/above": tmp_path,
        "nowhere": tmp_path / "gone",
        "gone.png": tmp_path / "gone.png",
    }.items():
        os.symlink(target, root / name)
    os.symlink(root / "real/1.png", root / "one.png")
    found = walk(root)
    assert places(found) == ["far/2.png", "one.png", "real/1.png"]
    assert found.left_out == {AGAIN: 4, NOWHERE: 2}


def test_links_in_a_circle_end(tmp_path):
    root = plant(tmp_path / "a", "1.png")
    first, second = tmp_path / "first", tmp_path / "second"
    plant(first, "2.png")
    plant(second, "3.png")
    os.symlink(second, first / "on")
    os.symlink(first, second / "back")
    os.symlink(first, root / "b")
    assert places(walk(root)) == ["1.png", "b/2.png", "b/on/3.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with pytest.raises(OSError, match="gone"):
        walk(tmp_path / "gone")
