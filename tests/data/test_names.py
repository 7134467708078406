from pathlib import Path

import pytest

from dfm_mlflow.data.names import (
    BAD_NAMES,
    EITHER_NAMES,
    GOOD_NAMES,
    Named,
    in_mask_folder,
    is_picture,
    label_of,
    may_be_either,
    means_bad,
    means_good,
)
from dfm_mlflow.storage.walk import File


@pytest.mark.parametrize("name", ["good", "Good", "GOOD", "ok", "OK", "normal", "Normal"])
def test_names_of_good_pictures(name):
    assert means_good(name)
    assert label_of(name) == "good"
    assert not means_bad(name)


def test_numbers_speak_only_beside_each_other():
    assert means_good("0", {"0", "1"})
    assert means_bad("1", {"0", "1"})
    assert not means_good("0")
    assert not means_good("0", {"0", "2"})
    assert may_be_either("0")
    assert not may_be_either("0", {"0", "1"})


@pytest.mark.parametrize("name", ["pass", "Negative", "no defect", "defect-free", "images"])
def test_names_that_may_be_either(name):
    assert may_be_either(name)
    assert not means_good(name)
    assert not means_bad(name)


def test_no_name_is_of_two_kinds():
    assert not GOOD_NAMES & BAD_NAMES
    assert not (GOOD_NAMES | BAD_NAMES) & EITHER_NAMES
    assert all(name == name.casefold() for name in GOOD_NAMES | BAD_NAMES | EITHER_NAMES)
    assert not any(may_be_either(name) for name in ("hole", "scratch", "logical_anomalies", "bent"))


def test_case_of_endings_and_folders_never_matters():
    assert is_picture(File((), Path("a.JPeG")))
    assert in_mask_folder(File(("a", "Ground_Truth", "b"), Path("c.png")))
    assert not in_mask_folder(File(("a", "masked"), Path("mask.png")))


def test_the_deepest_named_folder_counts():
    named = Named("train/pass, old/")
    assert named.names == ("train/pass", "old")
    assert named.depth(("train", "pass", "cam1")) == 2
    assert named.depth(("test", "pass")) == 0
    assert named.depth(("a", "old", "b")) == 2  # a bare name counts anywhere
    assert named.depth(("trainer", "pass")) == 0
    assert not Named("auto")
    far = Named("s3://bucket/returns, /srv/returns")
    assert far.depth(("s3://bucket/returns", "june")) == 1
    assert far.depth(("srv", "returns")) == 0
    assert [str(folder) for folder in far.far()] == ["s3://bucket/returns", "/srv/returns"]
