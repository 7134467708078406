import hashlib
import shutil

import pytest

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.picture_list import (
    Row,
    found_again,
    keep_copies,
    places_in,
    read_rows,
    rows_of,
    write_rows,
)
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store

from ..conftest import write_category


@pytest.fixture
def rows(tmp_path):
    catalog = load_catalog(str(write_category(tmp_path / "data", "caps", n_train=3)), ["caps"])
    return rows_of(catalog.items, catalog.contents)


def test_a_list_is_read_as_it_was_written(rows, tmp_path):
    write_rows(rows, tmp_path / "list.csv")
    assert read_rows(str(tmp_path / "list.csv")) == rows
    assert sum(bool(row.mask) for row in rows) == 5
    (tmp_path / "own.csv").write_text(
        "sha256,path,split,label,class\n,data/x.png,train,good,caps\n"
    )
    (own,) = read_rows(str(tmp_path / "own.csv"))
    assert own == Row(str(tmp_path / "data/x.png"), "", "train", "good", category="caps")
    (tmp_path / "own.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="lacks the column sha256, split"):
        read_rows(str(tmp_path / "own.csv"))


def test_what_moved_is_found_by_its_contents_and_what_is_gone_is_named(rows, tmp_path, caplog):
    place = tmp_path / "data/caps/train/good"
    (tmp_path / "other").mkdir()
    shutil.move(place / "000.png", tmp_path / "other/renamed.png")
    (place / "001.png").write_bytes((place / "002.png").read_bytes())  # another stands there now
    with pytest.raises(DataError, match=r"2 of 17 pictures .*000\.png.*001\.png.*give add="):
        found_again(rows, {})
    with pytest.raises(DataError, match=r"1 of 17 pictures .*001\.png"):
        found_again(rows, places_in(str(tmp_path / "other")))
    gone = next(row.sha256 for row in rows if row.path.endswith("train/good/001.png"))
    (tmp_path / "data/caps/ground_truth/hole/000_mask.png").unlink()
    found, looks = found_again(rows, places_in(str(tmp_path / "other")), {gone})
    moved = [row.path for row in found if row.path.endswith("renamed.png")]
    assert moved == [str(tmp_path / "other/renamed.png")]
    assert looks[moved[0]].size == (64, 64)
    assert "1 pictures moved and were found again" in caplog.text
    assert "000_mask.png is gone" in caplog.text
    assert sum(bool(row.mask) for row in found) == 4


def check_kept(rows, kept, root):
    for row, copy in zip(rows, kept, strict=True):
        assert copy.path == f"{root}/{row.sha256[:2]}/{row.sha256}.png"
        assert hashlib.sha256(store.read(copy.path)).hexdigest() == row.sha256
        assert bool(copy.mask) == bool(row.mask)
        assert not copy.mask or copy.mask.startswith(root)


def test_copies_are_kept_by_their_contents(rows, tmp_path):
    root = tmp_path / "kept"
    kept = keep_copies(rows, str(root))
    check_kept(rows, kept, str(root))
    assert keep_copies(kept, str(root)) == kept  # again: nothing is written
    (tmp_path / "data/caps/train/good/000.png").write_bytes(b"other")
    with pytest.raises(DataError, match="was changed while it was copied"):
        keep_copies(rows, str(root))


def test_copies_are_kept_in_s3(rows, s3_store):
    bucket = s3_store.bucket
    root = f"s3://{bucket}/line/pictures"
    kept = keep_copies(rows, root + "/")
    check_kept(rows, kept, root)
    found, _ = found_again(kept, {})
    assert found == kept
