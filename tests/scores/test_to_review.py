import datetime

import pandas as pd
import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.origin import write_scores
from dfm_mlflow.scores.to_review import (
    FLAGGED,
    PASSED,
    RETEST,
    TRAINING,
    Scores,
    choose,
    read_scores,
)


def scored(rows, **columns):
    table = pd.DataFrame(rows, columns=["path", "p_value", "is_anomaly", "decision"])
    table["anomaly_score"] = 1 / table["p_value"]
    table["predicted_class"], table["error"] = "caps", None
    return table.assign(**columns)


ROWS = [
    ("/pass", 0.9, False, "pass"),
    ("/flag-far", 0.001, True, "reject"),
    ("/again", 0.03, False, "retest"),
    ("/near-pass", 0.06, False, "pass"),
    ("/flag-near", 0.01, True, "reject"),
]


def names(cases):
    return [(case.path.lstrip("/"), case.why) for case in cases]


def test_the_retest_band_comes_first_then_flagged_then_least_typical():
    found = choose([Scores(scored(ROWS), "scored")], 10)
    assert names(found) == [
        ("again", RETEST),
        ("flag-near", FLAGGED),
        ("flag-far", FLAGGED),
        ("near-pass", PASSED),
        ("pass", PASSED),
    ]
    assert names(choose([Scores(scored(ROWS), "scored")], 2)) == names(found)[:2]
    without = scored(ROWS).drop(columns="decision")
    assert names(choose([Scores(without, "scored")], 10))[0] == ("flag-near", FLAGGED)


def test_labels_that_say_otherwise_come_first_and_errors_never():
    labels = ["hole", "hole", "good", "good", "good"]
    table = scored(ROWS, label=labels, error=[None, None, None, "broken", None])
    assert names(choose([Scores(table, "scored")], 10)) == [
        ("again", RETEST),
        ("flag-near", FLAGGED),  # a false alarm
        ("flag-far", FLAGGED),
        ("pass", PASSED),  # a miss
    ]


def training(n=100):
    return pd.DataFrame(
        {
            "path": [f"/t{i}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
            "category": "caps",
            "held_out_score": [float(i) for i in range(n)],
            "p_value": [1 - i / n for i in range(n)],
            "used": [i != n - 1 for i in range(n)],
        }
    )


def test_the_most_unusual_fifth_of_the_training_pictures_ends_the_page(tmp_path):
    write_scores(training(), tmp_path / "train_scores.parquet", "models:/m-1")
    found = read_scores(str(tmp_path / "train_scores.parquet"))
    assert (found.kind, found.model) == ("training", "models:/m-1")
    assert names(choose([found], 100)) == [(f"t{i}", TRAINING) for i in range(98, 58, -1)]  # 40
    many = [Scores(training(300), "training")]
    assert len(choose(many, 100)) == 60
    both = choose([Scores(scored(ROWS), "scored"), found], 100)
    assert names(both)[5:] == [(f"t{i}", TRAINING) for i in range(98, 58, -1)]
    assert both[-1].label == "good"


def test_where_there_is_no_room_a_quarter_is_training_pictures_and_the_log_says_so(caplog):
    both = [Scores(scored(ROWS), "scored"), Scores(training(), "training")]
    with caplog.at_level("INFO"):
        assert names(choose(both, 100))[-1][1] == TRAINING
        assert not caplog.messages
        assert [why for _, why in names(choose(both, 4))].count(TRAINING) == 1
    assert caplog.messages == [
        "2 more scored pictures and 39 more training pictures do not fit on a page of 4: give a "
        "larger most."
    ]
    cases = choose(both, 8)  # what the others leave free is filled
    assert [why for _, why in names(cases)].count(TRAINING) == 3
    assert len(cases) == 8


@pytest.fixture
def log(tmp_path):
    """A server's log: parts below days, and two pictures that it kept, one of them scored twice."""
    root = tmp_path / "log"
    for day, rows in enumerate(([("a", 0.5), ("b", 0.01), ("c", 0.02)], [("b", 0.03)])):
        time = datetime.datetime(2026, 11, 27 + day, tzinfo=datetime.timezone.utc)
        table = pd.DataFrame(
            {
                "time": time,
                "model_version": "3",
                "sha256": [name * 64 for name, _ in rows],
                "anomaly_score": [1 / p for _, p in rows],
                "p_value": [p for _, p in rows],
                "is_anomaly": [p < 0.05 for _, p in rows],
                "predicted_class": "caps",
                "decision": None,
                "error": None,
                "latency_ms": 3.0,
            }
        )
        (root / f"day={day}").mkdir(parents=True)
        table.to_parquet(root / f"day={day}/part.parquet")
    for name in "bc":
        place = root / "kept" / (name * 2)
        place.mkdir(parents=True)
        (place / f"{name * 64}.png").write_bytes(b"")
    return root


def test_a_servers_log_gives_the_last_score_of_what_it_kept(log):
    found = read_scores(str(log))
    assert found.n_not_kept == 1
    cases = choose([found], 10)
    assert [(case.sha256[0], case.p_value, case.why) for case in cases] == [
        ("b", 0.03, FLAGGED),
        ("c", 0.02, FLAGGED),
    ]
    assert cases[0].path == str(log / "kept/bb" / f"{'b' * 64}.png")
    import shutil

    shutil.rmtree(log / "kept")
    with pytest.raises(DataError, match="the scores of 3 pictures and keeps none of them: serve"):
        read_scores(str(log))
    with pytest.raises(DataError, match="is a part of a server's log: give the whole folder"):
        read_scores(str(log / "day=0/part.parquet"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither a .parquet nor a folder"),
        (b"text", "is not a parquet file"),
        (pd.DataFrame({"path": ["a"]}), "lacks the column anomaly_score, p_value, is_anomaly"),
        (pd.DataFrame({"x": ["a"]}), "lacks the column sha256"),
    ],
)
def test_what_is_no_table_of_scores_gets_one_sentence(tmp_path, content, words):
    path = tmp_path / "s.parquet"
    if content is None:
        path = tmp_path / "nowhere"
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.to_parquet(path)
    with pytest.raises(DataError, match=words):
        read_scores(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(str(tmp_path / "gone.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        read_scores(str(tmp_path / "empty"))
