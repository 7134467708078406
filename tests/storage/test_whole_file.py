import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.whole_file import DRAFT, draft_of, whole_file


@pytest.mark.parametrize("writing", [draft_of, whole_file])
def test_a_file_is_there_only_when_it_is_whole(tmp_path, writing):
    path = tmp_path / "a/b/table.parquet"
    with writing(path) as draft:
        draft.write_bytes(b"half")
        assert not path.exists()
        assert draft.name.startswith(DRAFT)
        assert (draft.parent, draft.suffix) == (path.parent, ".parquet")
        draft.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("writing", [draft_of, whole_file])
def test_a_failure_leaves_what_was_there(tmp_path, writing):
    path = tmp_path / "table.csv"
    path.write_bytes(b"before")

    def broken_off():
        with writing(path) as draft:
            draft.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    path = tmp_path / "table.csv"
    with draft_of(path) as mine, draft_of(path) as theirs:
        assert mine != theirs
        mine.write_bytes(b"mine")
        theirs.write_bytes(b"theirs")
    assert path.read_bytes() == b"mine"  # which was whole last
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file/table.csv"
    with pytest.raises(DataError, match=r"table\.csv cannot be written \(.*\)"), whole_file(path):
        pytest.fail("there is no folder to write to")
    with pytest.raises(OSError, match="file"), draft_of(path):
        pytest.fail("there is no folder to write to")
