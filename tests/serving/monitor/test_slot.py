import os

from dfm_mlflow.serving.monitor.slot import Slot
from dfm_mlflow.storage.dated_folder import DatedFolder


def test_each_worker_has_its_own_number_and_no_more_than_there_are(tmp_path):
    folder = DatedFolder(str(tmp_path))
    slots = [Slot(folder, 3) for _ in range(4)]
    assert [slot.take() for slot in slots] == [0, 1, 2, None]
    assert slots[0].take() == 0
    slots[1].release()
    assert slots[3].take() == 1


def test_a_number_ends_with_its_process_whatever_ends_it(tmp_path):
    folder = DatedFolder(str(tmp_path))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"%d" % Slot(folder, 1).take())
        os.read(read, 1) if False else os.kill(os.getpid(), 19)  # stands still
    assert os.read(read, 1) == b"0"
    assert Slot(folder, 1).take() is None
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert Slot(folder, 1).take() == 0


def test_locks_of_a_log_in_s3_lie_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, two = (DatedFolder(f"s3://bucket/{name}") for name in ("one", "two"))
    first, second = Slot(one, 1), Slot(one, 1)
    assert (first.take(), second.take(), Slot(two, 1).take()) == (0, None, 0)


def test_a_folder_that_cannot_be_written_gives_none(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert Slot(DatedFolder(str(tmp_path / "file")), 1).take() is None
