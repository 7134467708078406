"""Which pictures a model is fitted to after verdicts: its own list, found again and changed."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from dfm_mlflow.config import Options, UpdateOptions
from dfm_mlflow.data.chosen import pictures_to_fit
from dfm_mlflow.data.groups import is_list
from dfm_mlflow.data.learned import Learned, digests_to_remove, learn, places_of_verdicts
from dfm_mlflow.data.picture_list import (
    Row,
    found_again,
    keep_copies,
    looks_at,
    places_in,
    read_rows,
    rows_of,
)
from dfm_mlflow.data.source import absolute
from dfm_mlflow.data.verdicts import PictureVerdict
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.images.read import Look
from dfm_mlflow.mlflow_plugin.model_uri import ResolvedModel
from dfm_mlflow.mlflow_plugin.run_files import address_of
from dfm_mlflow.storage import store
from dfm_mlflow.tracking.lineage import RECALIBRATED_FROM

TRAINING = "training.csv"  # of a run

_logger = logging.getLogger(__name__)


def learned_set(
    options: UpdateOptions,
    verdicts: Sequence[PictureVerdict],
    detector: AnomalyDetector,
    found: ResolvedModel,
    run_id: str | None,
) -> tuple[Learned, dict[str, Look]]:
    """Start from a model's pictures, find them again, and apply verdicts and removals."""
    rows = _own_rows(options, detector.options, found, run_id)
    places = {} if options.add == "none" else places_in(options.add)
    going = digests_to_remove(rows, options.remove)
    rows, looks = found_again(rows, places, going)
    known = {row.sha256 for row in rows} | places.keys()
    places = places_of_verdicts(verdicts, known) | places
    learned = learn(rows, verdicts, places, going, detector.class_names)
    if not any(change.changed for change in learned.changes):
        raise ConfigError(
            f"Nothing would change in {found.uri}: its {len(rows)} pictures are what the verdicts "
            "say already; judge others with `dfm-mlflow review`."
        )
    _say_unused(options, places, learned)
    grouped = [_grouped(row, detector.options.group_by) for row in learned.rows]
    if options.copy_to != "none":
        grouped = keep_copies(grouped, options.copy_to)
    looks |= looks_at([row.path for row in grouped if row.path not in looks])
    return replace(learned, rows=grouped), looks


def _own_rows(
    options: UpdateOptions, model: Options, found: ResolvedModel, run_id: str | None
) -> list[Row]:
    """Give the list that the model was fitted to, each picture with its digest."""
    if options.data == "auto":
        rows = _rows_of_run(found, run_id)
    elif options.data.lower().endswith(".csv") and _has_digests(options.data):
        rows = read_rows(absolute(options.data))
    else:
        given = model.model_copy(update={"data": absolute(options.data)})
        catalog = pictures_to_fit(given)
        rows = rows_of(catalog.items, catalog.contents)
    categories = model.categories
    if len(categories) == 1:
        rows = [replace(row, category=row.category or categories[0]) for row in rows]
    other = next((row for row in rows if row.category not in categories), None)
    if other:
        raise DataError(
            f"The list of pictures has the category {other.category!r}, and {found.uri} knows "
            f"{', '.join(categories)}: give data=<pictures of the model>."
        )
    if any(not row.sha256 for row in rows):
        looks = looks_at([row.path for row in rows])
        rows = [
            replace(r, sha256=r.sha256 or (looks[r.path].sha256 if r.path in looks else ""))
            for r in rows
        ]
    return rows


def _rows_of_run(found: ResolvedModel, run_id: str | None) -> list[Row]:
    remedy = (
        f"give data=<its {TRAINING}, another manifest or the folder> of the pictures that it was "
        "fitted to"
    )
    tags = found.version.tags if found.version else {}
    if RECALIBRATED_FROM in tags:
        raise DataError(
            f"{found.uri} is {tags[RECALIBRATED_FROM]} with new thresholds and was fitted to "
            "nothing itself: update that one and recalibrate the result, or " + remedy + "."
        )
    if run_id is None:
        raise DataError(f"{found.uri} names no run that made it, so its pictures are not known: "
                        f"{remedy}.")  # fmt: skip
    try:
        return read_rows(address_of(run_id, TRAINING))
    except DataError as error:
        raise DataError(
            f"The pictures of {found.uri} are not known. {error} Or {remedy}."
        ) from None


def _has_digests(address: str) -> bool:
    try:
        head = store.read_address(absolute(address)).split(b"\n", 1)[0]
    except OSError as error:
        raise DataError(
            f"data={address} cannot be read ({error.strerror}): give a list that can."
        ) from None
    return b"sha256" in head


def _say_unused(options: UpdateOptions, places: dict[str, str], learned: Learned) -> None:
    if options.add == "none":
        return
    used = {row.sha256 for row in learned.rows}
    n_unused = sum(digest not in used for digest in places)
    if n_unused:
        _logger.info(
            "%d pictures of add=%s have no verdict and are not used: judge them with "
            "`dfm-mlflow review` first.",
            n_unused,
            options.add,
        )


def _grouped(row: Row, pattern: str) -> Row:
    """Write down the group that the path of a picture says, so that it may move."""
    if row.group or pattern == "none":
        return row
    match = None if is_list(pattern) else re.search(pattern, row.path)
    group = match.group(match.re.groups and 1) if match else None
    alone = hashlib.sha256(f"{row.path}\0{row.sha256}".encode()).hexdigest()[:16]
    return replace(row, group=group or f"alone-{alone}")
