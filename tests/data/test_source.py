"""Which category a source holds, where nobody names one."""

import pytest

from dfm_mlflow.data.folder import Naming
from dfm_mlflow.data.source import absolute, category_of, holds_categories, is_category
from dfm_mlflow.errors import DataError

from ..trees import plant

NOBODY = Naming.of()


def test_a_folder_that_is_a_category_gives_its_own_name(tmp_path, s3_store):
    for number, files in enumerate(
        (
            ["train/good/{0..1}.png"],
            ["OK/{0..1}.png", "NG/0.png"],
            ["{0..1}.png", "old/0.png"],
            ["Data/Images/Normal/0.JPG"],
            ["0/{0..1}.png", "1/0.png"],
        )
    ):
        root = plant(tmp_path / str(number) / "screws", *files)
        assert is_category(root)
        assert category_of(str(root), "auto", NOBODY) == "screws"
        uri = s3_store.upload(root, f"{number}/screws")
        assert category_of(f"{uri}/", "auto", NOBODY) == "screws"


def test_a_folder_that_holds_one_gives_that_one_s_name(tmp_path):
    plant(tmp_path, "screws/train/good/0.png", "notes/a.txt", ".cache/train/good/0.png")
    assert holds_categories(tmp_path)
    assert category_of(str(tmp_path), "auto", NOBODY) == "screws"


def test_several_are_refused_with_their_names(tmp_path):
    plant(tmp_path, "screws/train/good/0.png", "nuts/train/good/0.png")
    with pytest.raises(DataError, match="holds the categories nuts, screws: give category=<name>"):
        category_of(str(tmp_path), "auto", NOBODY)
    # unless folders are named: then it is the category itself
    assert category_of(str(tmp_path), "auto", Naming.of(good="good")) == tmp_path.name


def test_a_manifest_gives_its_classes_or_its_name(tmp_path):
    (tmp_path / "lot7.csv").write_text("path,split,label\n0.png,train,good\n")
    (tmp_path / "all.csv").write_text("path,split,label,class\n0.png,train,good,b\n1.png,test,x,a")
    assert category_of(str(tmp_path / "lot7.csv"), "auto", NOBODY) == "lot7"
    assert category_of(str(tmp_path / "all.csv"), "auto", NOBODY) == "b,a"


@pytest.mark.parametrize("data", ["auto", "elpv", "mvtec_ad"])
def test_data_sets_must_be_told(data):
    with pytest.raises(DataError, match=f"data={data} does not say which category is meant"):
        category_of(data, "auto", NOBODY)
    assert category_of(data, "bottle", NOBODY) == "bottle"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("v2.1: left", "v2.1- left"), ("50% done", "50- done"), ("a,b", "a-b"), ("..x", "x")],
)
def test_names_become_names_that_a_category_may_have(tmp_path, folder, name):
    root = plant(tmp_path / folder, "0.png")
    assert category_of(str(root), "auto", NOBODY) == name


def test_a_relative_path_is_written_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")
    assert [absolute(d) for d in ("auto", "elpv", "s3://b/a")] == ["auto", "elpv", "s3://b/a"]
    plant(tmp_path / "screws", "0.png")
    monkeypatch.chdir(tmp_path / "screws")
    assert category_of(".", "auto", NOBODY) == "screws"


def test_a_missing_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"The folder {tmp_path}/screws does not exist"):
        category_of("screws", "auto", NOBODY)
