"""Which scored pictures a person should judge first: those whose verdicts would teach most."""

import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.origin import model_in
from dfm_mlflow.scores.parts import PLAN
from dfm_mlflow.scores.training import SHARE
from dfm_mlflow.storage import store
from dfm_mlflow.storage.store import SCHEME, S3Folder
from dfm_mlflow.storage.walk import walk

RETEST, FLAGGED, PASSED, TRAINING = "retest", "flagged", "least typical", "training"
KEPT = "kept"  # folder of a server's log with the pictures themselves
# Training pictures at least, where there are so many: bad ones hide each other and themselves where
# few teach. Of 4 bad ones among 40, the 12 most unusual hold three quarters (docs/learning.md).
FEWEST = 40
_OF_MOST = 4  # training pictures are at most this part of a page that others fill, too

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A picture to judge."""

    path: str  # where it is
    why: str  # why it is shown
    category: str  # that it was judged by
    score: float
    p_value: float
    label: str = ""  # that it has already; empty for none
    sha256: str = ""  # of its contents, where the table has it


@dataclass(frozen=True, eq=False)
class Scores:
    """A table of scores, and whose they are."""

    table: pd.DataFrame  # with ``path``
    kind: str
    model: str | None = None  # address of the model, where the file says so
    n_not_kept: int = field(default=0)  # pictures that a server scored and did not keep


def read_scores(address: str) -> Scores:
    """Read what a job or a server wrote of the pictures that it scored."""
    if address.lower().endswith(".parquet"):
        table, model = _read([address])
        kept, is_folder = {}, False
    else:
        root = store.folder(address)
        if not root.is_dir():
            raise DataError(
                f"{address} is neither a .parquet nor a folder of them: give what `score`, "
                "`evaluate` or a server wrote."
            )
        files = [str(f.source) for f in walk(root).files if f.suffix == ".parquet"]
        # a server that runs may remove its oldest part meanwhile
        files = [f for f in files if f.startswith(SCHEME) or Path(f).is_file()]
        if not files:
            raise DataError(f"{address} holds no .parquet: give what `score` or a server wrote.")
        table, model = _read(files)
        model = model or _planned(root)
        kept, is_folder = _kept(root / KEPT), True
    if "held_out_score" in table:
        return Scores(table[table["used"].astype(bool)], "training", model)
    if "path" in table:
        _check(address, table, ("path", "anomaly_score", "p_value", "is_anomaly"))
        return Scores(table, "scored", model)
    _check(address, table, ("sha256", "anomaly_score", "p_value", "is_anomaly"))
    if not is_folder:
        raise DataError(f"{address} is a part of a server's log: give the whole folder.")
    return _of_server(address, table, kept, model)


def _of_server(
    address: str, table: pd.DataFrame, kept: Mapping[str, str], model: str | None
) -> Scores:
    """Give the last score of each picture that the server kept."""
    if "time" in table:
        table = table.sort_values("time", kind="stable")
    table = table[table["sha256"].notna()].drop_duplicates("sha256", keep="last")
    there = table["sha256"].isin(list(kept))
    if not there.any():
        raise DataError(
            f"{address} holds the scores of {len(table)} pictures and keeps none of them: serve "
            "with keep=all, retest or flagged, or review what `score` wrote."
        )
    mine = table[there]
    mine = mine.assign(path=mine["sha256"].map(dict(kept)))
    return Scores(mine, "scored", model, int((~there).sum()))


def _read(addresses: Sequence[str]) -> tuple[pd.DataFrame, str | None]:
    tables, model = [], None
    for address in addresses:
        try:
            found = pq.read_table(io.BytesIO(store.read_address(address)))
        except OSError as error:
            raise DataError(
                f"{address} cannot be read ({error.strerror or error}): give a table of scores."
            ) from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{address} is not a parquet file ({error}): give a table of scores."
            ) from None
        tables.append(found.to_pandas())
        model = model_in(found.schema) or model
    filled = [t for t in tables if len(t)] or tables[:1]
    return pd.concat(filled, ignore_index=True), model


def _planned(root: Path | S3Folder) -> str | None:
    """The model of a folder of parts, which its plan names."""
    try:
        found = json.loads(store.read_address(f"{root}/{PLAN}")).get("uri")
    except (OSError, DataError, ValueError, AttributeError):
        return None
    return found or None


def _kept(root: Path | S3Folder) -> dict[str, str]:
    if not root.is_dir():
        return {}
    return {f.source.stem: _whole(str(f.source)) for f in walk(root).files}


def _whole(path: str) -> str:
    return path if path.startswith(SCHEME) else os.path.abspath(path)


def _check(address: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(
            f"{address} lacks the column {', '.join(missing)}: give a table of scores, as `score`, "
            "`evaluate`, a run or a server writes it."
        )


def choose(scores: Sequence[Scores], most: int) -> list[Case]:
    """Put the pictures first whose verdicts would teach most.

    First come those of the retest band, then flagged ones, then the least typical of those that
    pass, each from the threshold outwards and those first whose labels say otherwise; then the most
    unusual fifth of the training pictures, or 40 of them. What finds no room is counted in the log.
    """
    scored = [s.table for s in scores if s.kind == "scored"]
    fitted = [s.table for s in scores if s.kind == "training"]
    cases = [case for table in scored for case in _in_order(table)]
    training = [case for table in fitted for case in _unusual(table)]
    n_training = min(len(training), max(1, most // _OF_MOST, most - len(cases)))
    n_cases = min(len(cases), most - n_training)
    n_more, n_more_training = len(cases) - n_cases, len(training) - n_training
    if n_more or n_more_training:
        _logger.info(
            "%d more scored pictures and %d more training pictures do not fit on a page of %d: "
            "give a larger most.",
            n_more,
            n_more_training,
            most,
        )
    return [*cases[:n_cases], *training[:n_training]]


def _in_order(table: pd.DataFrame) -> list[Case]:
    if "error" in table:
        table = table[table["error"].isna()]
    table = table[table["p_value"].notna()].drop_duplicates("path")
    flagged = table["is_anomaly"].astype(bool)
    again = table["decision"].eq("retest") if "decision" in table else flagged & False
    label = table["label"] if "label" in table else pd.Series("", table.index)
    label = label.where(label != "unlabelled", "")
    agrees = (label == "") | ((label != GOOD) == flagged)
    table = table.assign(label=label, agrees=agrees & ~again)
    cases = []
    for why, mine, from_below in (
        (RETEST, again, True),
        (FLAGGED, flagged & ~again, False),
        (PASSED, ~flagged & ~again, True),
    ):
        rows = table[mine].sort_values(
            ["agrees", "p_value", "anomaly_score"],
            ascending=[True, from_below, not from_below],
            kind="stable",
        )
        cases += [_case(row, why) for row in rows.to_dict("records")]
    return cases


def _case(row: Mapping[Any, Any], why: str) -> Case:
    category = row.get("predicted_class") or row.get("category") or ""
    return Case(
        _whole(str(row["path"])),
        why,
        str(category),
        float(str(row["anomaly_score"])),
        float(str(row["p_value"])),
        str(row["label"]),
        str(row.get("sha256") or ""),
    )


def _unusual(table: pd.DataFrame) -> list[Case]:
    table = table[table["p_value"].notna()]
    n = max(FEWEST, math.ceil(SHARE * len(table)))
    rows = table.sort_values(["p_value", "held_out_score"], ascending=[True, False]).head(n)
    return [
        Case(
            _whole(str(row["path"])),
            TRAINING,
            str(row["category"]),
            float(row["held_out_score"]),
            float(row["p_value"]),
            GOOD,
            str(row.get("sha256") or ""),
        )
        for row in rows.to_dict("records")
    ]
