import multiprocessing
import os
import signal

import pytest

from dfm_mlflow.data.verdicts import PictureVerdict, append_verdict, read_verdicts, who_said
from dfm_mlflow.errors import DataError

A, B = "a" * 64, "b" * 64


@pytest.fixture
def write(tmp_path):
    def call(text):
        path = tmp_path / "v.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return call


def test_two_columns_are_enough_and_more_are_read(write):
    assert read_verdicts(write(f"sha256,verdict\n{A},good\n")) == [PictureVerdict(A, "good")]
    text = f"\ufeffverdict,sha256,defect,who,note\n BAD ,{B.upper()},scratch,ann,x\n\n"
    (one,) = read_verdicts(write(text))
    assert one == PictureVerdict(B, "bad", defect="scratch", who="ann")
    assert one.label == "scratch"
    assert PictureVerdict(A, "bad").label == "defective"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sha256,path\n", "lacks the column verdict"),
        ("sha256,verdict\n", "holds no verdict"),
        ("sha256,verdict\nabc,good\n", "line 2: sha256=abc is not a SHA-256"),
        (f"sha256,verdict\n{A},fine\n", "line 2: verdict=fine: give good, bad, unsure"),
        (f"sha256,verdict,defect\n{A},good,hole\n", "is good has the defect hole"),
        (f"sha256,verdict,defect\n{A},bad,OK\n", "the defect OK may mean good"),
    ],
)
def test_a_wrong_file_gets_one_sentence(write, text, words):
    with pytest.raises(DataError, match=words) as caught:
        read_verdicts(write(text))
    assert str(caught.value).count(". ") <= 1
    with pytest.raises(DataError, match="cannot be read"):
        read_verdicts("nowhere/v.csv")


def test_of_conflicting_verdicts_the_last_counts_and_that_is_said(write, caplog):
    path = write(
        f"sha256,verdict,defect,who\n{A},good,,ann\n{B},bad,,bob\n{B},bad,hole,bob\n{A},bad,,cy\n"
    )
    found = read_verdicts(path)
    assert [(v.sha256, v.verdict, v.defect) for v in found] == [(B, "bad", "hole"), (A, "bad", "")]
    assert "different things of 1 pictures, and the last verdict counts" in caplog.text
    assert "is good by ann, then bad by cy" in caplog.text
    assert who_said(found) == "bob, cy"


def test_appending_keeps_what_is_there(tmp_path):
    path = tmp_path / "new/v.csv"
    first = PictureVerdict(A, "bad", "/p/a, b.png", 'a "deep" scratch', "", "ann", "now", "m")
    append_verdict(path, first)
    append_verdict(path, PictureVerdict(B, "unsure"))
    assert read_verdicts(str(path)) == [first, PictureVerdict(B, "unsure")]
    path.write_text(f"verdict,sha256,note\ngood,{A},mine\n")
    append_verdict(path, PictureVerdict(B, "bad", defect="hole"))
    assert path.read_text().splitlines()[0].startswith("verdict,sha256,note,path,defect")
    assert ",mine," in path.read_text()
    path.write_text("something,else\n1,2\n")
    with pytest.raises(DataError, match="lacks the column"):
        append_verdict(path, first)
    assert path.read_text() == "something,else\n1,2\n"


def _append(path, n):
    for i in range(n):
        append_verdict(path, PictureVerdict(f"{os.getpid():032x}{i:032x}", "good"))


def test_two_at_once_lose_nothing_and_a_kill_leaves_a_whole_file(tmp_path):
    path = tmp_path / "v.csv"
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_append, args=(path, 20)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert len(read_verdicts(str(path))) == 40
    endless = fork.Process(target=_append, args=(path, 10**6))
    endless.start()
    n = 40
    while n < 60:
        n = len(read_verdicts(str(path)))  # whole whenever somebody looks
    os.kill(endless.pid, signal.SIGKILL)
    endless.join()
    assert len(read_verdicts(str(path))) >= n
    append_verdict(path, PictureVerdict(A, "good"))  # the lock went with the process
    assert read_verdicts(str(path))[-1].sha256 == A
