import pytest

from dfm_mlflow.data.find import find_pictures, parts_by
from dfm_mlflow.errors import DataError

from ..trees import plant

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


def test_masks_and_hidden_files_are_never_scored_and_are_counted(tmp_path, s3_store, caplog):
    root = plant(
        tmp_path / "a",
        "test/hole/{0..2}.png",
        "ground_truth/hole/{0..2}_mask.png",
        "test/.ipynb_checkpoints/0-checkpoint.png",
        "test/hole/._0.png",
        "test/4.heic",
        "test/5.jfif",
        "notes.txt",
    )
    uri = s3_store.upload(root, "a")
    for address in (str(root), uri):
        found = find_pictures(address)
        names = [str(s).removeprefix(f"{address}/") for s in found.sources]
        assert names == ["test/5.jfif", *(f"test/hole/{i}.png" for i in range(3))]
        assert found.account.unused == {
            "in ground_truth": 3,
            "hidden files or folders": 2,
            ".heic (convert to JPEG)": 1,
            ".txt files": 1,
        }
        assert f"Used 4 pictures of {address}; not used: 3 in ground_truth" in caplog.text
        # a pattern gets them only if it spells them
        assert len(find_pictures(f"{address}/**/*.png").sources) == 3
        assert len(find_pictures(f"{address}/ground_truth/**/*.png").sources) == 3


def test_links_to_folders_are_followed_once(tmp_path):
    root = plant(tmp_path / "a", "1.png")
    far = plant(tmp_path / "far", "2.png")
    for name, target in {"b": far, "c": far, "up": root, "gone.png": root / "none.png"}.items():
        (root / name).symlink_to(target)
    found = find_pictures(str(root))
    assert [p.name for p in found.sources] == ["1.png", "2.png"]
    assert found.account.unused == {
        "links to folders that are listed already": 2,
        "links that lead nowhere": 1,
    }


def test_what_there_is_instead_of_pictures_is_said(tmp_path):
    root = plant(tmp_path / "a", "{0..2}.heic")
    with pytest.raises(DataError, match=r"no picture .* but 3 \.heic \(convert to JPEG\)"):
        find_pictures(str(root))


def test_a_relative_address_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}/none is not there"):
        find_pictures("none")


def test_parts_come_from_a_manifest_or_the_path(tmp_path):
    root = plant(tmp_path / "a", "7_left.png", "7_right.png", "8_left.png", "odd.png")
    found = find_pictures(str(root))
    assert parts_by("none", found) is None
    assert parts_by(r"(\d+)_\w+\.png", found) == ["7", "7", "8", str(root / "odd.png")]
    assert parts_by(r"\d+_(?=left|right)", found)[:2] == ["7_", "7_"]
    with pytest.raises(DataError, match="part_by='tray' matches no picture, such as"):
        parts_by("tray", found)
    (root / "list.csv").write_text("path,part\n8_left.png,first\n7_left.png,\n")
    listed = find_pictures(str(root / "list.csv"))
    assert [p.name for p in listed.sources] == ["8_left.png", "7_left.png"]
    assert parts_by("none", listed) == ["first", str(root / "7_left.png")]
    assert parts_by(r"(\d+)_left", listed) == ["first", "7"]
