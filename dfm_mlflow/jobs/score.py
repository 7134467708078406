"""Score folders, patterns and prefixes of pictures into parquet, here or on Spark."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from tqdm import tqdm

from dfm_mlflow.config import ScoreOptions
from dfm_mlflow.data.find import find_all, parts_by
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.overlay_files import OverlayFolder
from dfm_mlflow.mlflow_plugin.bundle import Bundle
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.scores.origin import with_model
from dfm_mlflow.scores.part_decisions import promise_of
from dfm_mlflow.scores.parts import (
    DONE,
    Asked,
    OutputFolder,
    Plan,
    plan_parts,
    score_part,
    scores_of,
)
from dfm_mlflow.storage.score_table import NONE, ScoreTable, said
from dfm_mlflow.storage.store import SCHEME, S3Object
from dfm_mlflow.tracking.project import refuse_lost_output
from dfm_mlflow.tracking.run import run_of

_STEP = 256  # pictures of a single file that are scored and written at a time

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring job did.

    Attributes
    ----------
    output : str
    n_images, n_errors : int
        Pictures scored by this run, and those of them that could not be read.
    n_before : int
        Pictures whose scores an earlier run had finished, and which are kept.
    seconds : float
    n_again : int
        Pictures among `n_images` whose scores were there, in a part with a picture that has
        changed, come or gone since.
    n_unused : int
        Files that were found and are no pictures to score; the log says why.
    n_anomalous : int
        Pictures among `n_images` that are anomalous.
    most : DataFrame
        Rows with the smallest p-values; none of a folder of parts.
    """

    output: str
    n_images: int
    n_errors: int
    n_before: int
    seconds: float
    n_again: int = 0
    n_unused: int = 0
    n_anomalous: int = 0
    most: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)

    def summary(self) -> str:
        """Say it in a line, and in a sentence more where an earlier run had begun."""
        more = []
        if self.n_before:
            more.append(f"The scores of {self.n_before} pictures were kept from an earlier run.")
        if self.n_again:
            more.append(
                f"{self.n_again} pictures were scored again, since they or others of their parts "
                "changed, came or went."
            )
        return "\n".join([*more, said(self.n_images, self.n_anomalous, self.n_errors, self.output)])

    def record(self) -> dict[str, object]:
        """Say it for scripts."""
        names = ("output", "n_images", "n_anomalous", "n_errors", "n_before", "n_unused", "seconds")
        return {name: getattr(self, name) for name in names}


def score(options: ScoreOptions, *, session: Any = None) -> ScoreResult:
    """Score pictures into a table: the column ``path``, then those of ``AnomalyDetector.score``.

    Where parts are told apart, ``part``, ``part_p_value`` and ``part_is_anomaly`` follow, and rows
    are in the order of parts. A picture that cannot be read becomes a row with ``error``, unless
    ``on_error`` is ``raise``. A folder of files is continued where an earlier run stopped.

    Parameters
    ----------
    options : ScoreOptions
    session : SparkSession, optional
        With ``engine=spark``; else see :func:`dfm_mlflow.spark.session.session_of`.

    Raises
    ------
    ArtifactError
        If the model cannot be loaded.
    DataError
        If there are no pictures, a store fails, or nothing can be written.
    SparkError
        If Spark cannot be used.
    ConfigError
        If the output is a folder of something else.
    """
    start = time.perf_counter()
    table = None
    if options.output != NONE:
        refuse_lost_output(options.output)
    if options.engine == "local" and not _is_folder(options.output):
        table = ScoreTable(options.output)  # what cannot be written is refused before the work
    model = resolve(options.model).uri  # an alias that moves meanwhile moves nothing here
    if Path(model).exists():
        model = os.path.abspath(model)
    options = options.model_copy(update={"model": model})
    bundle = Bundle.of(model)
    found = find_all(options.images)
    # read once and never again: nothing is gained by keeping them
    sources = [replace(s, cached=False) if isinstance(s, S3Object) else s for s in found.sources]
    shown = parts_by(options.part_by, found) or []
    overlays = None
    if options.overlays != "none":
        overlays = OverlayFolder(options.overlays, sources, options.images)
    detector = bundle.load() if shown or options.engine == "local" else None
    if shown and detector:
        _logger.info(promise_of(detector, shown, options.rate))
    if options.engine == "spark" or detector is None:
        result = _on_spark(bundle, sources, shown, options, session)
    elif table is None:
        result = _in_parts(detector, sources, shown, options, bundle.sha256, overlays)
    else:
        result = _in_one_file(detector, sources, shown, options, overlays, table)
    if overlays is not None and result.n_before:
        _logger.warning(
            "%d pictures were scored by an earlier run, and have no overlay from this one: give a "
            "new output to draw all.",
            result.n_before,
        )
    result = replace(
        result,
        output=options.output,
        seconds=time.perf_counter() - start,
        n_unused=found.account.n_unused,
    )
    _log(options, result)
    return result


def asked_of(options: ScoreOptions) -> Asked:
    """Say how pictures are to be scored, by `options`."""
    return Asked(options.category, options.rate, options.anomaly_map, options.on_error)


def _in_one_file(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    options: ScoreOptions,
    overlays: OverlayFolder | None,
    table: ScoreTable,
) -> ScoreResult:
    asked = asked_of(options)
    with table:
        for step in _steps(sources, shown):
            mine = [sources[i] for i in step]
            parts = [shown[i] for i in step if shown]
            scores = scores_of(detector, mine, asked, parts, overlays)
            named = with_model(scores.schema, options.model)
            table.write(scores.replace_schema_metadata(named.metadata))
    return ScoreResult(
        options.output,
        table.n_images,
        table.n_errors,
        0,
        0.0,
        n_anomalous=table.n_anomalous,
        most=table.most,
    )


def _in_parts(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    options: ScoreOptions,
    model: str,
    overlays: OverlayFolder | None,
) -> ScoreResult:
    folder, asked = OutputFolder(options.output), asked_of(options)
    plan = plan_parts(folder, sources, model, asked=asked, shown=shown, uri=options.model)
    parts = tqdm(plan.missing, "parts", disable=None)
    counts = [score_part(detector, part, folder, asked, overlays) for part in parts]
    return _finish(folder, counts, plan)


def _on_spark(
    bundle: Bundle,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    options: ScoreOptions,
    session: Any,
) -> ScoreResult:
    from dfm_mlflow.spark.score import cores, score_parts
    from dfm_mlflow.spark.session import session_of

    output, asked = options.output, asked_of(options)
    if not output.startswith(SCHEME):
        output = str(Path(output).expanduser().absolute())
    folder = OutputFolder(output)
    with session_of(session) as spark:
        plan = plan_parts(
            folder, sources, bundle.sha256, 2 * cores(spark), asked, shown, options.model
        )
        counts = score_parts(spark, plan.missing, bundle, folder, asked) if plan.missing else []
    return _finish(folder, counts, plan)


def _finish(
    folder: OutputFolder, counts: Sequence[tuple[int, int, int]], plan: Plan
) -> ScoreResult:
    folder.write(DONE, b"")
    n, bad, flagged = (sum(count[i] for count in counts) for i in range(3))
    before = sum(len(part.sources) for part in plan.finished)
    return ScoreResult(folder.address, n, bad, before, 0.0, plan.n_again, n_anomalous=flagged)


def _steps(sources: Sequence[Path | S3Object], shown: Sequence[str]) -> Iterator[list[int]]:
    """Give places of pictures that are scored at a time; all that show one part are together."""
    order = sorted(range(len(sources)), key=lambda i: shown[i]) if shown else range(len(sources))
    step: list[int] = []
    for i in tqdm(order, "scoring", disable=None):
        if len(step) >= _STEP and not (shown and shown[i] == shown[step[-1]]):
            yield step
            step = []
        step.append(i)
    yield step


def _is_folder(output: str) -> bool:
    return output.endswith("/") or (
        not output.startswith(SCHEME) and Path(output).expanduser().is_dir()
    )


def _log(options: ScoreOptions, result: ScoreResult) -> None:
    """Log to the run that ``mlflow run`` opened; a job of its own opens none."""
    _logger.info(result.summary(), extra={"dfm_result": True})
    if not (mlflow.active_run() or os.environ.get("MLFLOW_RUN_ID")):
        return
    tags = {"dfm.job": "score", "dfm.output": options.output}
    with run_of("score", tags):
        mlflow.log_metrics(
            {
                "n_images": result.n_images,
                "n_anomalous": result.n_anomalous,
                "n_unreadable": result.n_errors,
                "n_before": result.n_before,
                "n_unused_files": result.n_unused,
                "images_per_second": result.n_images / max(result.seconds, 1e-9),
            }
        )
