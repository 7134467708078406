import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.storage.score_table import MOST, ScoreTable, as_arrow, said


def rows(*p_values, error=None):
    n = len(p_values)
    return as_arrow(
        pd.DataFrame(
            {
                "path": [f"{p}.png" for p in p_values],
                "p_value": np.array(p_values, float),
                "is_anomaly": pd.array([None if error else p < 0.1 for p in p_values], "boolean"),
                "anomaly_map": pd.Series([None] * n, dtype="object"),
                "error": pd.Series([error] * n, dtype="object"),
            }
        )
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "none"])
def test_it_counts_and_keeps_the_smallest(tmp_path, name):
    output = name if name == "none" else str(tmp_path / name)
    with ScoreTable(output) as table:
        table.write(rows(0.5, 0.02))
        table.write(rows(np.nan, error="empty"))
        table.write(rows(*np.linspace(0.2, 1, 40)))
    assert (table.n_images, table.n_anomalous, table.n_errors) == (43, 1, 1)
    assert len(table.most) == MOST
    assert table.most["p_value"].iloc[0] == 0.02
    assert "anomaly_map" not in table.most
    if name != "none":
        read = (pd.read_csv if name == "a.csv" else pd.read_parquet)(output)
        assert len(read) == 43
        assert list(read["error"].dropna()) == ["empty"]
    assert table.summary() == said(43, 1, 1, output)


def breaks_off(output):
    with ScoreTable(output) as table:
        table.write(rows(0.5))
        raise ZeroDivisionError


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    for name in ("old.csv", "new.csv", "new.parquet"):
        with pytest.raises(ZeroDivisionError):
            breaks_off(str(tmp_path / name))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"old.csv": "old"}


def test_it_goes_to_s3(s3_store, tmp_path):
    with ScoreTable(f"s3://{s3_store.bucket}/a.csv") as table:
        table.write(rows(0.5))
    s3_store.client.download_file(s3_store.bucket, "a.csv", str(tmp_path / "a.csv"))
    assert list(pd.read_csv(tmp_path / "a.csv")["path"]) == ["0.5.png"]


def test_what_cannot_be_written_is_refused_at_once(tmp_path):
    for output, words in {"a.txt": "give .parquet or .csv", "none/a.csv": "make it first"}.items():
        with pytest.raises(ConfigError, match=words):
            ScoreTable(str(tmp_path / output))
