"""Score folders, patterns and prefixes of pictures into parquet, here or on Spark."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
from tqdm import tqdm

from dfm_mlflow.config import ScoreOptions
from dfm_mlflow.data.find import find_pictures, parts_by
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.images.overlay_files import OverlayFolder
from dfm_mlflow.mlflow_plugin.bundle import Bundle
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.scores.origin import with_model
from dfm_mlflow.scores.part_decisions import promise_of
from dfm_mlflow.scores.parts import (
    DONE,
    OutputFolder,
    Plan,
    n_errors,
    plan_parts,
    score_part,
    scores_of,
)
from dfm_mlflow.storage import store
from dfm_mlflow.storage.store import SCHEME, S3Object
from dfm_mlflow.storage.whole_file import whole_file
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
    """

    output: str
    n_images: int
    n_errors: int
    n_before: int
    seconds: float
    n_again: int = 0
    n_unused: int = 0

    def summary(self) -> str:
        """Say it in a sentence."""
        sentence = (
            f"{self.output} holds the scores of {self.n_images + self.n_before} pictures; "
            f"{self.n_images} were scored now, {self.n_images / max(self.seconds, 1e-9):.1f} a "
            f"second, and {self.n_errors} of them could not be read."
        )
        if self.n_before:
            sentence += f" The scores of {self.n_before} pictures were kept from an earlier run."
        if self.n_again:
            sentence += (
                f" {self.n_again} pictures were scored again, since they or others of their parts "
                "changed, came or went."
            )
        return sentence


def score(options: ScoreOptions, *, session: Any = None) -> ScoreResult:
    """Score pictures into parquet: the column ``path``, then those of ``AnomalyDetector.score``.

    Where parts are told apart, ``part``, ``part_p_value`` and ``part_is_anomaly`` follow, and rows
    are in the order of parts. A picture that cannot be read becomes a row with ``error``. A folder
    of files is gone on with where an earlier run broke off.

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
    refuse_lost_output(options.output)
    model = resolve(options.model).uri  # an alias that moves meanwhile moves nothing here
    if Path(model).exists():
        model = os.path.abspath(model)
    options = options.model_copy(update={"model": model})
    bundle = Bundle.of(model)
    found = find_pictures(options.images)
    # read once and never again: nothing is gained by keeping them
    sources = [replace(s, cached=False) if isinstance(s, S3Object) else s for s in found.sources]
    shown = parts_by(options.part_by, found) or []
    overlays = None
    if options.overlays != "none":
        overlays = OverlayFolder(options.overlays, sources, [options.images])
    detector = bundle.load() if shown or options.engine == "local" else None
    if shown and detector:
        _logger.info(promise_of(detector, shown))
    if options.engine == "spark" or detector is None:
        result = _on_spark(bundle, sources, shown, options, session)
    elif _is_folder(options.output):
        result = _in_parts(detector, sources, shown, options, bundle.sha256, overlays)
    else:
        result = _in_one_file(detector, sources, shown, options, overlays)
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


def _in_one_file(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    options: ScoreOptions,
    overlays: OverlayFolder | None,
) -> ScoreResult:
    output = options.output
    if output.startswith(SCHEME):
        with tempfile.TemporaryDirectory(prefix="dfm-score-") as name:
            draft = Path(name, "scores.parquet")
            bad = _write(detector, sources, shown, draft, options, overlays)
            store.upload(output, draft.read_bytes())
        return ScoreResult(output, len(sources), bad, 0, 0.0)
    target = Path(output).expanduser()
    if not target.absolute().parent.is_dir():
        raise ConfigError(
            f"output={target.absolute()} lies in a folder that is not there: make it first."
        )
    with whole_file(target) as draft:
        bad = _write(detector, sources, shown, draft, options, overlays)
    return ScoreResult(output, len(sources), bad, 0, 0.0)


def _write(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    path: Path,
    options: ScoreOptions,
    overlays: OverlayFolder | None,
) -> int:
    bad, writer, category = 0, None, options.category
    with ExitStack() as stack:
        for step in _steps(sources, shown):
            mine = [sources[i] for i in step]
            table = scores_of(detector, mine, category, [shown[i] for i in step if shown], overlays)
            bad += n_errors(table)
            if writer is None:  # with pandas' dtypes, as the parts of a folder have them
                writer = stack.enter_context(
                    pq.ParquetWriter(path, with_model(table.schema, options.model))
                )
            writer.write_table(table)
    return bad


def _in_parts(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    shown: Sequence[str],
    options: ScoreOptions,
    model: str,
    overlays: OverlayFolder | None,
) -> ScoreResult:
    folder, category = OutputFolder(options.output), options.category
    plan = plan_parts(folder, sources, model, category=category, shown=shown, uri=options.model)
    parts = tqdm(plan.missing, "parts", disable=None)
    counts = [score_part(detector, part, folder, category, overlays) for part in parts]
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

    output, category = options.output, options.category
    if not output.startswith(SCHEME):
        output = str(Path(output).expanduser().absolute())
    folder = OutputFolder(output)
    with session_of(session) as spark:
        plan = plan_parts(
            folder, sources, bundle.sha256, 2 * cores(spark), category, shown, options.model
        )
        counts = score_parts(spark, plan.missing, bundle, folder, category) if plan.missing else []
    return _finish(folder, counts, plan)


def _finish(folder: OutputFolder, counts: Sequence[tuple[int, int]], plan: Plan) -> ScoreResult:
    folder.write(DONE, b"")
    n, bad = sum(n for n, _ in counts), sum(bad for _, bad in counts)
    before = sum(len(part.sources) for part in plan.finished)
    return ScoreResult(folder.address, n, bad, before, 0.0, plan.n_again)


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
    _logger.info(result.summary())
    if not (mlflow.active_run() or os.environ.get("MLFLOW_RUN_ID")):
        return
    tags = {"dfm.job": "score", "dfm.output": options.output}
    with run_of("score", tags):
        mlflow.log_metrics(
            {
                "n_images": result.n_images,
                "n_unreadable": result.n_errors,
                "n_before": result.n_before,
                "n_unused_files": result.n_unused,
                "images_per_second": result.n_images / max(result.seconds, 1e-9),
            }
        )
