import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.scores.origin import model_in, with_model, write_scores


def test_a_table_knows_its_model(tmp_path):
    table = pd.DataFrame({"path": ["a"], "anomaly_score": [1.0]})
    write_scores(table, tmp_path / "s.parquet", "models:/dfm-é/3")
    assert model_in(pq.read_schema(tmp_path / "s.parquet")) == "models:/dfm-é/3"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s.parquet"), table)
    write_scores(table, tmp_path / "s.parquet", None)
    assert model_in(pq.read_schema(tmp_path / "s.parquet")) is None
    other = pa.schema([("path", pa.string())], {b"mine": b"stays"})
    assert with_model(other, "m").metadata[b"mine"] == b"stays"
    assert model_in(with_model(other, "m")) == "m"
