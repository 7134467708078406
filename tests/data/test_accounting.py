from collections import Counter
from pathlib import Path

from dfm_mlflow.data.accounting import Account, count, reason_of, total, used_of
from dfm_mlflow.data.item import Item, Mask
from dfm_mlflow.storage.walk import HIDDEN, NOWHERE, File


def test_one_line_says_all_of_it():
    account = Account("9 pictures", {"in subfolders": 25, ".heic (convert to JPEG)": 15})
    assert account.sentence() == (
        "Used 9 pictures; not used: 25 in subfolders, 15 .heic (convert to JPEG)."
    )
    assert account.n_unused == 40
    assert Account("9 pictures").sentence() == "Used 9 pictures; not used: nothing."


def test_it_warns_of_what_may_have_been_meant(caplog):
    import logging

    with caplog.at_level("INFO"):
        Account("9 pictures", {".txt files": 1}).log(logging.getLogger("a"))
        Account("9 pictures", {"in subfolders": 1}, 1).log(logging.getLogger("a"))
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]


def test_several_categories_are_added_up():
    both = total([Account("1 a", {"x": 1}, 1), Account("2 b", {"x": 2, "y": 1}, 2)])
    assert both == Account("1 a; 2 b", {"x": 3, "y": 1}, 3)


def test_the_most_frequent_reason_comes_first():
    left_out = Counter({HIDDEN: 2, NOWHERE: 3})
    assert list(count(["a", "b", "a", "a", "a"], left_out).items()) == [
        ("a", 4),
        (NOWHERE, 3),
        ("hidden files or folders", 2),
        ("b", 1),
    ]


def test_endings_say_why_a_file_is_not_read():
    def reason(name):
        return reason_of(File((), Path(name)))

    assert reason("a.PNG") is None
    assert reason("a.HEIC") == ".heic (convert to JPEG)"
    assert reason("a.NEF") == ".nef (convert to PNG or TIFF)"
    assert reason("a.txt") == ".txt files"
    assert reason("README") == "files without an ending"


def test_what_is_used_is_counted_by_split_and_label():
    items = [Item(Path("0"), "a", "train", "good")] * 3
    items += [Item(Path("0"), "a", "test", "good")] * 2
    items += [Item(Path("0"), "a", "test", "hole", Mask((Path("m"),)))]
    assert used_of("a", items, "train and test") == (
        "6 pictures of a (train and test): 3 to fit on, 3 to test on (2 good, 1 of hole; 1 masks)"
    )
    assert used_of("a", items[:3], "flat") == "3 pictures of a (flat): 3 to fit on"
    many = [Item(Path("0"), "a", "test", f"kind {i}") for i in range(6)]
    assert "1 of kind 3, and 2 more labels" in used_of("a", many, "flat")
