import pytest

from dfm_mlflow.data.learned import Change, digests_to_remove, learn, places_of_verdicts
from dfm_mlflow.data.picture_list import Row
from dfm_mlflow.data.verdicts import PictureVerdict
from dfm_mlflow.errors import DataError


def digest(i):
    return f"{i:064x}"


def row(i, split="train", label="good", **more):
    return Row(f"/p/{i}.png", digest(i), split, label, category="caps", **more)


ROWS = [
    row(0),
    row(1),
    row(2),
    row(3, excluded="odd"),
    row(4, "test"),
    row(5, "test", "hole", mask="/m/5.png"),
]


def taught(*verdicts, rows=ROWS, places=(), removed=(), categories=("caps",)):
    return learn(rows, verdicts, dict(places), set(removed), categories)


def bad(i, defect="", **more):
    return PictureVerdict(digest(i), "bad", defect=defect, **more)


def good(i, **more):
    return PictureVerdict(digest(i), "good", **more)


def test_good_ones_train_bad_ones_test_and_removed_ones_are_gone():
    found = taught(
        good(3),
        good(5),
        bad(0, "scratch"),
        bad(7),
        good(8),
        PictureVerdict(digest(9), "unsure"),
        places={digest(7): "/new/7.png", digest(8): "/new/8.png"},
        removed=[digest(4)],
    )
    after = {r.sha256: (r.split, r.label, r.excluded, r.mask, r.path) for r in found.rows}
    assert after == {
        digest(0): ("test", "scratch", "", "", "/p/0.png"),
        digest(1): ("train", "good", "", "", "/p/1.png"),
        digest(2): ("train", "good", "", "", "/p/2.png"),
        digest(3): ("train", "good", "", "", "/p/3.png"),
        digest(5): ("train", "good", "", "", "/p/5.png"),
        digest(7): ("test", "defective", "", "", "/new/7.png"),
        digest(8): ("train", "good", "", "", "/new/8.png"),
    }
    assert [(c.before, c.after) for c in found.changes] == [
        ("test: good", "removed"),
        ("excluded", "training"),
        ("test: hole", "training"),
        ("training", "test: scratch"),
        ("new", "test: defective"),
        ("new", "training"),
    ]
    assert found.n_said == {"good": 3, "bad": 2}
    assert found.sentence() == (
        "3 pictures join the training set and 1 leave it, which has 5 now; 2 join the test set "
        "under their defects; 1 are removed; 1 are judged unsure."
    )
    assert all(r.category == "caps" for r in found.rows)


def test_order_names_and_repetition_of_verdicts_change_nothing():
    verdicts = [good(3), bad(0, "scratch"), bad(5)]
    forward, backward = taught(*verdicts), taught(*reversed(verdicts))
    assert sorted(map(str, forward.rows)) == sorted(map(str, backward.rows))
    again = taught(*verdicts, rows=forward.rows)
    assert not any(change.changed for change in again.changes)
    assert again.rows == forward.rows
    kept = next(r for r in forward.rows if r.sha256 == digest(5))
    assert (kept.label, kept.mask) == ("hole", "/m/5.png")  # nobody named another defect


def test_copies_go_the_way_of_the_picture():
    copies = [*ROWS, Row("/copy/0.png", digest(0), "train", "good", category="caps")]
    assert [r.split for r in taught(bad(0), rows=copies).rows if r.sha256 == digest(0)] == [
        "test",
        "test",
    ]
    left = taught(good(3), rows=copies, removed=[digest(0)]).rows
    assert digest(0) not in {r.sha256 for r in left}


@pytest.mark.parametrize(
    ("verdicts", "more", "words"),
    [
        ([good(9, path="/x/9.png")], {}, r"1 of 1 verdicts .*/x/9\.png: give add="),
        ([bad(0), bad(1)], {}, "would leave 1 of 3 good pictures of caps"),
        ([], {"removed": [digest(0), digest(1), digest(2)]}, "would leave 0 of 3"),
        (
            [good(9)],
            {"places": {digest(9): "/9.png"}, "categories": ("caps", "lids")},
            "names none of them: write one into the column category",
        ),
        (
            [good(9, category="nuts")],
            {"places": {digest(9): "/9.png"}},
            "names nuts, which it does not have",
        ),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(verdicts, more, words):
    if "categories" not in more and verdicts and verdicts[0].category:
        more = more | {"categories": ("caps", "lids")}
    with pytest.raises(DataError, match=words):
        taught(*verdicts, **more)


def test_pictures_are_where_verdicts_say_if_their_contents_are(tmp_path, caplog):
    import hashlib

    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"changed")
    right = hashlib.sha256(b"a").hexdigest()
    verdicts = [
        PictureVerdict(right, "good", str(tmp_path / "a.png")),
        PictureVerdict("b" * 64, "good", str(tmp_path / "b.png")),
        PictureVerdict("c" * 64, "good", str(tmp_path / "gone.png")),
        PictureVerdict("d" * 64, "unsure", str(tmp_path / "a.png")),
    ]
    assert places_of_verdicts(verdicts, set()) == {right: str(tmp_path / "a.png")}
    assert "1 pictures have other contents than when they were judged" in caplog.text


def test_a_list_says_what_is_removed(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"# out\n5.png\n{digest(1)}\n")
    assert digests_to_remove(ROWS, str(path)) == {digest(5), digest(1)}
    assert digests_to_remove(ROWS, "none") == set()
    path.write_text("9.png\n")
    with pytest.raises(DataError, match=r"line 1: 9\.png is not a picture of the model's list"):
        digests_to_remove(ROWS, str(path))


def test_a_change_knows_whether_it_is_one():
    assert not Change("0", "p", "caps", None, "training", "training").changed
