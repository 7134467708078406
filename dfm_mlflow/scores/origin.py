"""Which model gave a table of scores: its address goes with the table's file."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"dfm_mlflow.model"


def with_model(schema: pa.Schema, model: str | None) -> pa.Schema:
    """Write the address of a `model` into the metadata of a `schema`; None leaves it as it is."""
    if not model:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), _KEY: model.encode()})


def model_in(schema: pa.Schema) -> str | None:
    """Give the address that :func:`with_model` wrote into a `schema`, or None."""
    found = (schema.metadata or {}).get(_KEY)
    return found.decode() if found else None


def write_scores(table: pd.DataFrame, path: Path, model: str | None) -> None:
    """Write a table of scores as parquet."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow.cast(with_model(arrow.schema, model)), path)
