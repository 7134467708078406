"""A table of scores, written as it comes: parquet or CSV, on disk or S3, whole or not at all."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.store import SCHEME
from dfm_mlflow.storage.whole_file import whole_file

NONE = "none"
ARROW = {"float64": pa.float64(), "boolean": pa.bool_(), "object": pa.string()}
MOST = 20  # rows that are kept to be shown


class ScoreTable:
    """Counts what is written to it, and keeps the rows with the smallest p-values."""

    def __init__(self, output: str = NONE):
        self.output = output
        self.n_images = self.n_anomalous = self.n_errors = 0
        self.most = pd.DataFrame()
        self._stack = ExitStack()
        self._draft: Path | None = None
        self._parquet: Any = None
        self._csv: IO[str] | None = None
        if output == NONE:
            return
        if not output.endswith((".parquet", ".csv")):
            raise ConfigError(
                f"output={output} ends in {Path(output).suffix!r}: give .parquet or .csv."
            )
        if not output.startswith(SCHEME):
            target = Path(output).expanduser().absolute()
            if not target.parent.is_dir():
                raise ConfigError(
                    f"output={target} lies in a folder that is not there: make it first."
                )

    def __enter__(self) -> "ScoreTable":
        if self.output.startswith(SCHEME):
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dfm-score-"))
            self._draft = Path(folder, "scores")
        elif self.output != NONE:
            target = Path(self.output).expanduser()
            self._draft = self._stack.enter_context(whole_file(target))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._parquet is not None:
            self._parquet.close()
        if self._csv is not None:
            self._csv.close()
        try:
            if kind is None and self._draft is not None and self.output.startswith(SCHEME):
                store.upload(self.output, self._draft.read_bytes())
        except BaseException:
            self._stack.close()
            raise
        return self._stack.__exit__(kind, error, trace)

    def write(self, table: pa.Table) -> None:
        """Add rows: ``path`` and the columns of an answer, in `table`.

        The first rows settle the columns.
        """
        if self._draft is not None and self.output.endswith(".csv"):
            first = self._csv is None
            if self._csv is None:
                self._csv = self._draft.open("w", encoding="utf-8", newline="")
            table.to_pandas().to_csv(self._csv, index=False, header=first)
        elif self._draft is not None:
            if self._parquet is None:  # with pandas' dtypes, as the parts of a folder have them
                self._parquet = pq.ParquetWriter(self._draft, table.schema)
            self._parquet.write_table(table)
        self.count(table)

    def count(self, table: pa.Table) -> None:
        """Count the rows of a `table` that is written elsewhere."""
        n, errors, flagged = counts_of(table)
        self.n_images, self.n_errors = self.n_images + n, self.n_errors + errors
        self.n_anomalous += flagged
        shown = [name for name in table.column_names if name != "anomaly_map"]
        self.most = smallest([self.most, table.select(shown).to_pandas()])

    def summary(self) -> str:
        """Say in a line what was written."""
        return said(self.n_images, self.n_anomalous, self.n_errors, self.output)


def said(n_images: int, n_anomalous: int, n_errors: int, output: str) -> str:
    """Say in a line what was scored."""
    wrote = "" if output == NONE else f"; wrote {output}"
    pictures = "1 picture" if n_images == 1 else f"{n_images} pictures"
    return f"{pictures}, {n_anomalous} anomalous, {n_errors} unreadable{wrote}"


def counts_of(table: pa.Table) -> tuple[int, int, int]:
    """Count the rows of a `table`, those that could not be read, and those that are anomalous."""
    flagged = table["is_anomaly"].to_pandas().fillna(False).astype(bool)
    return len(table), len(table) - int(table["error"].null_count), int(flagged.sum())


def smallest(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Give the rows of `tables` with the smallest p-values, and those without one last."""
    filled = [table for table in tables if len(table)]
    if not filled:
        return pd.DataFrame()
    joined = filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
    return joined.sort_values("p_value", kind="stable", na_position="last").head(MOST)


def as_arrow(table: pd.DataFrame) -> pa.Table:
    """Give an answer as Arrow knows it: a column of nulls has the type of its values elsewhere."""
    fields = [(name, ARROW.get(str(kind), pa.string())) for name, kind in table.dtypes.items()]
    return pa.Table.from_pandas(table, pa.schema(fields), preserve_index=False)
