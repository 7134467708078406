import pytest

from dfm_mlflow.data.item import Item
from dfm_mlflow.data.listed import Finder, Line, read_list
from dfm_mlflow.errors import DataError

ITEMS = [Item(p, "a", "train", "good") for p in ("/d/good/1.png", "/d/good/2.png", "/e/good/1.png")]
SHA = "ab" * 32


def line(path="", sha256=""):
    return Line(1, path, sha256, {})


def test_a_picture_is_found_by_its_path_the_end_of_it_or_its_content():
    finder = Finder(ITEMS, {"/e/good/1.png": SHA})
    for name in ("/d/good/2.png", "good/2.png", "2.png", "./good/2.png", "good\\2.png"):
        assert finder.find(line(name)) == [ITEMS[1]], name
    assert finder.find(line(sha256=SHA.upper())) == [ITEMS[2]]
    assert finder.find(line("elsewhere.png", SHA)) == [ITEMS[2]]
    assert finder.find(line("ood/2.png")) == []
    assert finder.find(line(sha256="0" * 64)) == []


def test_an_end_of_several_paths_names_none_of_them():
    finder = Finder(ITEMS)
    assert finder.find(line("good/1.png")) == []
    assert finder.ambiguous(line("good/1.png")) == [ITEMS[0], ITEMS[2]]
    assert finder.find(line("d/good/1.png")) == [ITEMS[0]]
    assert finder.find(line("/e/good/1.png")) == [ITEMS[2]]  # written out: none other is meant


def test_text_files_hold_a_path_or_a_digest_a_line(tmp_path):
    (tmp_path / "list.txt").write_text(f"# by Ada\n\n  a b.png \n{SHA}\n")
    lines = read_list(str(tmp_path / "list.txt"), "exclude")
    assert [(x.number, x.path, x.sha256) for x in lines] == [(3, "a b.png", ""), (4, "", SHA)]


def test_tables_hold_further_columns(tmp_path):
    (tmp_path / "list.csv").write_text('path, reason\n"a,b.png", dust\n,\n')
    (found,) = read_list(str(tmp_path / "list.csv"), "exclude")
    assert (found.path, found.cells) == ("a,b.png", {"reason": "dust"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "exclude=.*gone.txt cannot be read .*: give a file that can"),
        ("a.csv", b"file\nx\n", "has no column path and no sha256"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(str(tmp_path / name), "exclude")
