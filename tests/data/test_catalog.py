import shutil

import pytest

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import DataError

from ..conftest import write_category


def test_mvtec_layout(mvtec_like):
    catalog = load_catalog(str(mvtec_like), ["stripes", "bands"])
    assert len(catalog.train) == 48
    assert {i.label for i in catalog.train} == {"good"}
    assert {(i.category, i.label) for i in catalog.test} == {
        (c, label) for c in ("stripes", "bands") for label in ("good", "hole")
    }


def test_masks_are_found(tmp_path):
    write_category(tmp_path, "a")
    found = {i.path.name: str(i.mask) for i in load_catalog(str(tmp_path), ["a"]).test if i.mask}
    folder = tmp_path / "a/ground_truth/hole"
    assert found == {f"{i:03d}.png": f"{folder}/{i:03d}_mask.png" for i in range(5)}


def test_digest_follows_content_and_labels_not_the_place(tmp_path):
    first = write_category(tmp_path / "one", "a")
    shutil.copytree(first, tmp_path / "two")
    before = load_catalog(str(first), ["a"]).digest
    assert load_catalog(str(tmp_path / "two"), ["a"]).digest == before
    image = first / "a/test/hole/000.png"
    image.rename(first / "a/test/good/999.png")
    assert load_catalog(str(first), ["a"]).digest != before


def test_flat_folder_is_all_training(mvtec_like):
    catalog = load_catalog(str(mvtec_like / "stripes/train/good"), ["stripes"])
    assert len(catalog.train) == 24
    assert catalog.test == []


def test_elpv_split():
    pytest.importorskip("elpv_dataset")
    catalog = load_catalog("auto", ["mono"])
    train, test = ({i.path for i in part} for part in (catalog.train, catalog.test))
    assert not train & test
    good = len(train) + sum(i.label == "good" for i in catalog.test)
    assert len(train) == int(0.7 * good)
    assert load_catalog("elpv", ["mono"]).digest == catalog.digest


@pytest.mark.parametrize(
    ("change", "categories", "words"),
    [
        (None, ["missing"], "neither the folder missing nor pictures"),
        (None, ["a", "b"], "no folder with pictures for b: it holds a"),
        ("rm a/train/good", ["a"], "14 test pictures and none to fit on"),
        ("keep 1", ["a"], "1 good pictures .* at least 2"),
        ("bad class", ["a"], "give good=train/scratch if they are, or bad=train/scratch"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, change, categories, words):
    write_category(tmp_path, "a")
    good = sorted((tmp_path / "a/train/good").iterdir())
    if change == "rm a/train/good":
        shutil.rmtree(tmp_path / "a/train/good")
    elif change == "keep 1":
        for path in good[1:]:
            path.unlink()
    elif change == "bad class":
        shutil.copytree(tmp_path / "a/train/good", tmp_path / "a/train/scratch")
    with pytest.raises(DataError, match=words):
        load_catalog(str(tmp_path), categories)


def test_labels_are_not_categories(tmp_path):
    for name in ("good", "defect"):
        write_category(tmp_path, name, n_train=2)
        with pytest.raises(DataError, match="is a label, not a category"):
            load_catalog(str(tmp_path), [name])


def test_the_category_s_own_folder_is_as_good_as_the_one_above_it(mvtec_like):
    itself = load_catalog(str(mvtec_like / "stripes"), ["stripes"])
    assert itself.digest == load_catalog(str(mvtec_like), ["stripes"]).digest
    with pytest.raises(DataError, match="neither the folder stripe nor pictures"):
        load_catalog(str(mvtec_like), ["stripe"])


def test_mvtec_ad_is_found_in_the_data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DFM_DATA_HOME", str(tmp_path))
    write_category(tmp_path / "mvtec_ad", "bottle", n_train=3)
    assert len(load_catalog("auto", ["bottle"]).train) == 3


def test_unknown_category_asks_for_data():
    with pytest.raises(DataError, match="give data=<folder>"):
        load_catalog("auto", ["gearbox"])
