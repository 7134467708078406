import pytest

from dfm_mlflow.data.find import find_pictures
from dfm_mlflow.errors import DataError

NAMES = ["a/1.png", "a/b/2.JPG", "a/b/c/3.png", "a/notes.txt", "z.tiff", "a[1]/4.png"]


@pytest.fixture
def tree(tmp_path):
    for name in NAMES:
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "archive"


PATTERNS = [
    ("", ["a/1.png", "a/b/2.JPG", "a/b/c/3.png", "a[1]/4.png", "z.tiff"]),
    ("/*", ["z.tiff"]),
    ("/a/*.png", ["a/1.png"]),
    ("/a/**/*.png", ["a/1.png", "a/b/c/3.png"]),
    ("/**/*.png", ["a/1.png", "a/b/c/3.png", "a[1]/4.png"]),
    ("/a/**", ["a/1.png", "a/b/2.JPG", "a/b/c/3.png", "a/notes.txt"]),
    ("/a/b/?.[jJ]PG", ["a/b/2.JPG"]),
    ("/a/b/[!0-9].JPG", []),
    ("/a/1.png", ["a/1.png"]),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_folders_and_patterns(tree, pattern, expected):
    if not expected:
        with pytest.raises(DataError, match="no picture"):
            find_pictures(f"{tree}{pattern}")
        return
    found = find_pictures(f"{tree}{pattern}").sources
    assert [p.relative_to(tree).as_posix() for p in found] == expected


def test_s3_means_the_same(tree, s3_store):
    root = s3_store.upload(tree, "archive")
    for pattern, expected in PATTERNS:
        if expected:
            found = [
                o.uri.removeprefix(f"{root}/") for o in find_pictures(f"{root}{pattern}").sources
            ]
            assert found == expected
    assert s3_store.gets("archive/") == []  # listed, never read


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="none is not there"):
        find_pictures(str(tmp_path / "none"))
    with pytest.raises(DataError, match="The folder .*none of"):
        find_pictures(str(tmp_path / "none" / "*.png"))
    with pytest.raises(DataError, match="There is no picture"):
        find_pictures(str(tmp_path))
