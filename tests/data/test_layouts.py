"""Layouts of folders: what each picture is, and what is refused rather than guessed."""

import pytest

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.folder import Naming
from dfm_mlflow.errors import DataError

from ..trees import counts, plant, roles

# name: files, options, pictures of each role, reasons of what is not used
LAYOUTS = {
    "mvtec": (
        ["train/good/{0..3}.png", "test/good/{0..1}.png", "test/hole/{0..2}.png"],
        {},
        {"train good": 4, "test good": 2, "test hole": 3},
        {},
    ),
    "loco": (
        [
            "train/good/{0..3}.png",
            "validation/good/{0..1}.png",
            "test/good/0.png",
            "test/logical_anomalies/{0..1}.png",
        ],
        {},
        {"train good": 6, "test good": 1, "test logical_anomalies": 2},
        {},
    ),
    "btad": (
        ["train/ok/{0..3}.bmp", "test/ok/0.bmp", "test/ko/{0..1}.bmp"],
        {},
        {"train good": 4, "test good": 1, "test ko": 2},
        {},
    ),
    "any case, any word for good": (
        ["Train/OK/{0..3}.PNG", "TEST/Good/0.JpG", "TEST/Normal/1.Jfif", "TEST/Hole/2.Pgm"],
        {},
        {"train good": 4, "test good": 2, "test Hole": 1},
        {},
    ),
    "0 beside 1": (
        ["train/0/{0..3}.png", "test/0/9.png", "test/1/{0..1}.png"],
        {},
        {"train good": 4, "test good": 1, "test 1": 2},
        {},
    ),
    "side by side": (
        ["good/{0..9}.png", "bad/{0..2}.png"],
        {},
        {"train good": 8, "test good": 2, "test bad": 3},
        {},
    ),
    "side by side, kinds of defects": (
        ["OK/{0..9}.png", "NG/scratch/{0..2}.png", "NG/dent/0.png"],
        {},
        {"train good": 8, "test good": 2, "test scratch": 3, "test dent": 1},
        {},
    ),
    "several cameras": (
        ["good/cam1/{0..9}.png", "good/cam2/left/{0..4}.png", "bad/cam1/0.png"],
        {},
        {"train good": 12, "test good": 3, "test cam1": 1},
        {},
    ),
    "cameras below train": (
        ["train/good/cam1/{0..4}.png", "train/good/cam2/{0..4}.png", "test/good/cam1/0.png"],
        {},
        {"train good": 10, "test good": 1},
        {},
    ),
    "visa without its table": (
        ["Data/Images/Normal/{0..9}.JPG", "Data/Images/Anomaly/{0..1}.JPG"],
        {},
        {"train good": 8, "test good": 2, "test Anomaly": 2},
        {},
    ),
    "flat": (["{0..5}.png", "notes.txt"], {}, {"train good": 6}, {".txt files": 1}),
    "flat with subfolders": (
        ["{0..5}.png", "old/{0..1}.png"],
        {},
        {"train good": 6},
        {"in subfolders": 2},
    ),
    "unexpected places": (
        ["train/good/{0..5}.png", "test/0.png", "extra/1.png", "2.png"],
        {},
        {"train good": 6},
        {"beside train and test": 2, "directly in test, where no folder labels them": 1},
    ),
    "good and bad are named": (
        ["pass/{0..9}.png", "returns/{0..2}.png", "other/0.png"],
        {"good": "pass", "bad": "returns"},
        {"train good": 8, "test good": 2, "test returns": 3},
        {"in folders that neither good= nor bad= names": 1},
    ),
    "one folder of train is named": (
        ["train/good/rgb/{0..5}.png", "train/good/xyz/{0..2}.tiff", "test/good/rgb/0.png"],
        {"good": "train/good/rgb"},
        {"train good": 6, "test good": 1},
        {"in folders that neither good= nor bad= names": 3},
    ),
    "a name that may be either is settled": (
        ["train/pass/{0..3}.png", "test/pass/0.png", "test/hole/{0..1}.png"],
        {"good": "pass"},
        {"train good": 4, "test good": 1, "test hole": 2},
        {},
    ),
    "defects among the training pictures are named": (
        ["train/good/{0..3}.png", "train/scratch/{0..1}.png"],
        {"bad": "train/scratch"},
        {"train good": 4, "test scratch": 2},
        {},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_taken(tmp_path, name):
    files, options, expected, unused = LAYOUTS[name]
    root = plant(tmp_path / "screws", *files)
    for data in (root, tmp_path):  # the category's folder, or the one above it
        catalog = load_catalog(str(data), ["screws"], naming=Naming.of(**options))
        assert counts(catalog) == expected
        assert catalog.account.unused == unused
        assert catalog.account.n_unused == sum(unused.values())


def test_s3_takes_the_same_layouts(tmp_path, s3_store):
    names = ("loco", "several cameras", "unexpected places", "one folder of train is named", "flat")
    for number, name in enumerate(names):
        files, options, expected, unused = LAYOUTS[name]
        root = plant(tmp_path / str(number) / "screws", *files)
        uri = s3_store.upload(root, f"{number}/screws")
        found = load_catalog(uri, ["screws"], naming=Naming.of(**options))
        here = load_catalog(str(root), ["screws"], naming=Naming.of(**options))
        assert roles(found, uri) == roles(here, root), name
        assert (counts(found), found.account.unused) == (expected, unused), name
        assert found.account == here.account, name


VISA = """object,split,label,image,mask
screws,train,normal,screws/Data/Images/Normal/0.JPG,
screws,train,normal,screws/Data/Images/Normal/1.JPG,
screws,test,normal,screws/Data/Images/Normal/2.JPG,
screws,test,anomaly,screws/Data/Images/Anomaly/0.JPG,screws/Data/Masks/Anomaly/0.png
candle,train,normal,candle/Data/Images/Normal/3.JPG,
"""


def test_visa_goes_by_its_table(tmp_path, s3_store):
    root = plant(
        tmp_path / "screws",
        "Data/Images/Normal/{0..3}.JPG",
        "Data/Images/Anomaly/0.JPG",
        "Data/Masks/Anomaly/0.png",
    )
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text(VISA)
    catalog = load_catalog(str(root), ["screws"])
    assert counts(catalog) == {"train good": 2, "test good": 1, "test anomaly": 1}
    assert [i.mask is not None for i in catalog.test] == [True, False]
    assert catalog.account.unused == {"not in split_csv/1cls.csv": 1}
    uri = s3_store.upload(tmp_path, "visa")
    assert load_catalog(uri, ["screws"]).digest == catalog.digest


def test_the_last_fifth_of_each_good_folder_is_tested_on(tmp_path):
    root = plant(tmp_path / "a", "good/cam1/{0..9}.png", "good/cam2/{0..4}.png", "bad/0.png")
    found = roles(load_catalog(str(root), ["a"]), root)
    tested = [place for place, role in found.items() if role == "test good"]
    assert tested == ["good/cam1/8.png", "good/cam1/9.png", "good/cam2/4.png"]
    # without defects there is nothing to rank against, and all are fitted on
    (root / "bad/0.png").unlink()
    assert counts(load_catalog(str(root), ["a"])) == {"train good": 15}


def test_good_pictures_that_are_new_to_a_model_are_all_tested_on(tmp_path):
    root = plant(tmp_path / "a", "good/{0..9}.png", "bad/0.png")
    catalog = load_catalog(str(root), ["a"], to_fit=False, all_tested=True)
    assert counts(catalog) == {"test good": 10, "test bad": 1}


REFUSED = {
    "good or not in test": (
        ["train/good/{0..3}.png", "test/pass/0.png"],
        {},
        r"screws/test/pass does not say .*: give good=test/pass or bad=test/pass\.",
    ),
    "0 without 1": (
        ["train/good/{0..3}.png", "test/0/0.png"],
        {},
        "give good=test/0 or bad=test/0",
    ),
    "not good in train": (
        ["train/good/{0..3}.png", "train/scratch/0.png"],
        {},
        "give good=train/scratch if they are, or bad=train/scratch to test on them",
    ),
    "a stranger beside good": (
        ["good/{0..3}.png", "scratch/0.png"],
        {},
        "screws/scratch does not say .*: give good=scratch or bad=scratch",
    ),
    "pictures in train itself": (
        ["train/{0..3}.png", "test/hole/0.png"],
        {},
        "screws/train holds 4 pictures and no folder good: give good=train",
    ),
    "no name says anything": (
        ["cam1/{0..3}.png", "cam2/{0..3}.png"],
        {},
        r"No name says which .* lie in cam1 \(4\), cam2 \(4\); give good=cam1",
    ),
    "most in subfolders": (
        ["{0..4}.png", "cam1/{0..24}.png"],
        {},
        r"25 of 30 pictures below .* would not be used \(25 in subfolders\): .* good=",
    ),
    "HEIC": (
        ["{0..1}.jpg", "{2..8}.HEIC"],
        {},
        r"7 of 9 pictures .* would not be used \(7 \.heic \(convert to JPEG\)\)",
    ),
    "HEIC alone": (["{0..8}.heic"], {}, r"holds 9 \.heic \(convert to JPEG\)"),
    "a folder named twice": (
        ["a/{0..3}.png", "b/0.png"],
        {"good": "a", "bad": "a"},
        "good= and bad= both name .*screws/a: name it once",
    ),
    "a folder that is not there": (
        ["good/{0..3}.png"],
        {"bad": "returns"},
        r"bad=returns names no folder with files below .*screws: it holds good\.",
    ),
    "a far folder that is not there": (
        ["good/{0..3}.png"],
        {"bad": "/nowhere/returns"},
        "The folder /nowhere/returns does not exist: correct good=, bad= or masks=",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_name_says_is_refused_with_the_options_that_settle_it(tmp_path, name):
    files, options, words = REFUSED[name]
    root = plant(tmp_path / "screws", *files)
    with pytest.raises(DataError, match=words) as caught:
        load_catalog(str(root), ["screws"], naming=Naming.of(**options))
    assert "\n" not in str(caught.value)
    assert "move" not in str(caught.value)  # good pictures are never sent to test/


def test_folders_elsewhere_may_be_named(tmp_path):
    root = plant(tmp_path / "screws", "good/{0..9}.png")
    far = plant(tmp_path / "returns", "june/{0..1}.png", "2.png")
    given = Naming.of(bad=str(far), good=str(root / "good"))
    catalog = load_catalog(str(root), ["screws"], naming=given)
    assert counts(catalog) == {
        "train good": 8,
        "test good": 2,
        "test june": 2,
        "test returns": 1,
    }


def test_data_sets_take_no_named_folders():
    with pytest.raises(DataError, match="good=, bad= and masks= have no meaning for data=elpv"):
        load_catalog("elpv", ["mono"], naming=Naming.of(good="x"))
