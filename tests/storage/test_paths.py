"""Names that no path can have, and names that are no text: one sentence before all else."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.find import find_pictures
from dfm_mlflow.data.manifest import read_manifest
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.paths import local_path

WRONG = [
    ("~nosuchuser/x", "~nosuchuser/x begins with a user who has no home"),
    ("/tmp/\0x", r"/tmp/\\x00x holds a character that no path can"),
    ("/tmp/\ud800x", r"/tmp/\\ud800x holds a character that no path can"),
    ("/tmp/" + "x" * 5000, r"x\.\.\. cannot be used as a path \(File name too long\)"),
]


@pytest.mark.parametrize(("address", "words"), WRONG)
def test_what_no_path_can_be_is_one_sentence(address, words, tmp_path):
    asks = [lambda: load_catalog(address, ["c"]), lambda: load_catalog(f"{address}.csv", ["c"])]
    asks += [lambda: find_pictures(address), lambda: find_pictures(f"{address}/*.png")]
    for ask in asks:
        with pytest.raises(DataError) as caught:
            ask()
        assert len(str(caught.value)) < 500
    with pytest.raises(DataError, match=words):
        local_path(address)


@pytest.mark.parametrize(("address", "words"), [w for w in WRONG if "ud800" not in w[1]])
@pytest.mark.parametrize("column", ["path", "mask"])
def test_a_cell_that_no_path_can_be_is_named_by_its_line(address, words, column, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    cells = {"path": "a.png", "mask": ""} | {column: address}
    text = f"path,split,label,mask\n{cells['path']},train,good,{cells['mask']}\n"
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=rf"list\.csv, line 2: .*{words}"):
        read_manifest(str(tmp_path / "list.csv"), ("c",))


def test_a_home_and_an_absolute_path_in_a_cell_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home/a.png", "else/b.png", "list/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [f"{p},train,good" for p in ("~/a.png", tmp_path / "else/b.png", "c.png")]
    (tmp_path / "list/list.csv").write_text("\n".join(["path,split,label", *rows]))
    found = read_manifest(str(tmp_path / "list/list.csv"), ("c",))
    assert [item.path.name for item in found] == ["a.png", "b.png", "c.png"]
    assert all(item.path.is_file() for item in found)


@pytest.mark.parametrize("odd", [b"c/train/good/\xff.png", b"c/test/\xff/1.png"])
def test_a_name_that_is_no_utf_8_is_refused_with_its_bytes(odd, tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b"c/train/good/1.png", b"c/train/good/2.png", b"c/test/good/1.png", odd):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new("RGB", (8, 8)).save(Path(os.fsdecode(path)), "PNG")
    for ask in (lambda: load_catalog(str(tmp_path), ["c"]), lambda: find_pictures(str(tmp_path))):
        with pytest.raises(DataError, match=r"The name /.*\\xff.* is not UTF-8: rename it"):
            ask()


def test_a_category_that_no_folder_can_be(mvtec_like):
    for category, words in (("a" * 5000, "File name too long"), ("a\0b", r"a\\x00b is not UTF-8")):
        with pytest.raises(DataError, match=words):
            load_catalog(str(mvtec_like / "stripes/train/good"), [category])


def test_a_pattern_that_matches_nothing(tmp_path):
    (tmp_path / "m.png").touch()
    with pytest.raises(DataError, match=r"no picture in .*\[z-a\]\*\.png: correct the address"):
        find_pictures(str(tmp_path / "[z-a]*.png"))


def test_a_file_in_place_of_a_folder_is_said_to_be_one(tmp_path):
    (tmp_path / "list.txt").write_text("path,split,label\n")
    with pytest.raises(DataError, match=r"list\.txt is a file and no \.csv: give its folder"):
        load_catalog(str(tmp_path / "list.txt"), ["c"])
