"""The command line, generated from ``config`` where options are there; ``MLproject`` calls it."""

import gc
import json
import sys
from collections.abc import Mapping
from typing import Any

import click

import dfm_mlflow
from dfm_mlflow.config import (
    BundleOptions,
    CompareOptions,
    DescribeOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    ReviewOptions,
    RollbackOptions,
    ScoreOptions,
    SweepOptions,
    UpdateOptions,
    UpgradeOptions,
)
from dfm_mlflow.console import log as console_log
from dfm_mlflow.console.options import options_of, with_experiment
from dfm_mlflow.console.result import (
    next_steps,
    report_file,
    score_lines,
    tell,
    wants_json,
    where_to_look,
    with_json,
    wrapped,
)
from dfm_mlflow.console.verb import Verbs, warn_old
from dfm_mlflow.errors import ConfigError, DfmError

_EPILOG = """Exit status: 0 done; 1 refused or failed, with one sentence on stderr; 2 a command line
that is not understood. Completion: eval "$(_DFM_MLFLOW_COMPLETE=bash_source dfm-mlflow)", or
zsh_source in zsh.
"""


# Options are written as on a command line; MLproject writes them as in Python.
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "max_content_width": 100,
}


@click.group(cls=Verbs, context_settings=_CONTEXT, epilog=_EPILOG, old={"log": "resume-logging"})
@click.version_option(dfm_mlflow.__version__, prog_name="dfm-mlflow")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def cli(debug: bool) -> None:
    """Image anomaly detection by Deep Feature Modeling, in MLflow's own words."""
    console_log.start()


@cli.command()
@with_json
@with_experiment
@options_of(Options)
def train(experiment: str, **values: Any) -> None:
    """Fit a detector to good pictures, evaluate, log, register it."""
    options = Options.parse(values)
    from dfm_mlflow.jobs.train import train as run

    _tell_trained(run(options, experiment=experiment))


@cli.command()
@with_json
@with_experiment
@options_of(Options)
def tune(experiment: str, **values: Any) -> None:
    """Choose the configuration on synthetic defects, then train.

    What is given is kept; normalisation is chosen on synthetic defects, copies by residuals.
    """
    options = Options.parse(values)
    from dfm_mlflow.jobs.tune import tune as run

    _tell_trained(run(options, experiment=experiment).trained)


def _tell_trained(result: Any, *more: str, **record: Any) -> None:
    """Tell what a training came to, and what may follow."""
    import mlflow

    from dfm_mlflow.export.graph import obstacle

    why = obstacle(result.detector)
    ready = f"It cannot be exported to ONNX as it is: {why}" if why else "It exports to ONNX."
    run = mlflow.get_run(result.run_id)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    look = where_to_look(mlflow.get_tracking_uri(), run.info.experiment_id, result.run_id)
    then = next_steps(result.registered_uri, report_file(run.info.artifact_uri), look)
    _tell_job(result, [*result.sentences, *more, ready], where, then, **record)


def _tell_job(
    result: Any, sentences: list[str], where: Mapping[str, str], then: str = "", **more: Any
) -> None:
    """Tell what a job with a run came to."""
    from dfm_mlflow.tracking.run import summary

    verdict = getattr(result, "verdict", None)
    if verdict is not None:
        sentences = [verdict.text, *sentences, *verdict.rates]
    record = {**where, "metrics": result.metrics, "sentences": sentences, **more}
    tell(summary(result.metrics, sentences, where), record, then)


@cli.command()
@with_json
@with_experiment
@options_of(SweepOptions)
def sweep(experiment: str, **values: Any) -> None:
    """Evaluate a grid of configurations on many categories.

    No model is kept: train the best.
    """
    options = SweepOptions.parse(values)
    from dfm_mlflow.jobs.sweep import sweep as run

    result = run(options, experiment=experiment)
    tell(result.summary(), {"run_id": result.run_id, "failures": result.failures})
    if error := result.error():
        raise error


@cli.command()
@with_json
@with_experiment
@options_of(EvaluateOptions, argument="model")
def evaluate(experiment: str, **values: Any) -> None:
    """Score new pictures: metrics if labelled, drift in any case."""
    options = EvaluateOptions.parse(values)
    from dfm_mlflow.jobs.evaluate import evaluate as run

    result = run(options, experiment=experiment)
    _tell_job(result, result.sentences, {"run_id": result.run_id})


@cli.command()
@with_json
@click.option("--url", help="Score on this server, which mlflow models serve started.")
@click.option("--timeout", default=60.0, help="With --url: seconds for one request.  [default: 60]")
@options_of(ScoreOptions, argument="images", optional=["model", "images"])
def score(url: str | None, timeout: float, **values: Any) -> None:
    """Score pictures here, on a server, or in Spark's executors.

    IMAGES are files, folders, patterns, s3:// prefixes or manifests. The model is --model, or the
    one that a server has (--url).
    """
    if (url is None) == (values["model"] is None) or not values["images"]:
        raise ConfigError("score needs images, and either --model URI or --url http://HOST:PORT.")
    options = ScoreOptions.parse({**values, "model": values["model"] or url})
    if url is None:
        from dfm_mlflow.jobs.score import score as run

        result = run(options)
        shown = score_lines(result.most, total=result.n_images) if len(result.most) else ""
        tell("\n\n".join(filter(None, (shown, result.summary()))), result.record())
    else:
        _score_on(url, options, timeout)


def _score_on(url: str, options: ScoreOptions, timeout: float) -> None:
    """Score on a server."""
    refused = {
        "--part-by": options.part_by != "none",
        "--engine": options.engine != "local",
        "--output ending in /": options.output.endswith("/"),
    }
    if unfit := [name for name, given in refused.items() if given]:
        raise ConfigError(f"{unfit[0]} needs --model: a server answers one row an image.")
    from dfm_mlflow.client import score_into
    from dfm_mlflow.data.find import find_all
    from dfm_mlflow.storage.score_table import ScoreTable

    table = ScoreTable(options.output)  # what cannot be written is refused before the work
    score_into(
        url,
        find_all(options.images).sources,
        table,
        overlays=options.overlays,
        searched=options.images,
        fpr=options.rate,
        category=options.category,
        anomaly_map=options.anomaly_map,
        on_error=options.on_error,
        timeout=timeout,
    )
    names = ("output", "n_images", "n_anomalous", "n_errors")
    tell(
        f"{score_lines(table.most, total=table.n_images)}\n\n{table.summary()}",
        {name: getattr(table, name) for name in names},
    )


@cli.command(old={"--to": "--alias"})
@with_json
@with_experiment
@options_of(PromoteOptions, argument="model")
def promote(experiment: str, **values: Any) -> None:
    """Move an alias to a registered version that passes all gates.

    MODEL is models:/NAME/VERSION; the alias is --alias.
    """
    options = PromoteOptions.parse(values)
    from dfm_mlflow.registry.promote import promote as run

    result = run(options, experiment=experiment)
    tell(result.summary(), result.record())


@cli.command()
@with_json
@options_of(RollbackOptions, argument="model")
def rollback(**values: Any) -> None:
    """Move an alias of a registered MODEL back to what it had."""
    options = RollbackOptions.parse(values)
    from dfm_mlflow.registry.aliases import rollback as run

    move = run(options.name, options.alias, options.reason)
    tell(
        f"{options.alias} of {options.name} points to version {move.version}; before, to "
        f"{move.before}.",
        {
            "model": options.name,
            "alias": options.alias,
            "version": move.version,
            "before": move.before,
        },
    )


@cli.command(old={"--uri": "--model"})
@with_json
@click.option("--history", "of_all", is_flag=True, help="All versions: does quality improve?")
@options_of(DescribeOptions, argument="model")
def describe(of_all: bool, **values: Any) -> None:
    """Say where a model comes from.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION, runs:/... or a path; with --history a NAME.
    """
    options = DescribeOptions.parse(values)
    if of_all:
        from dfm_mlflow.registry.history import as_dicts, history, in_lines

        records = history(options.model)
        click.echo(json.dumps(as_dicts(records), indent=2) if wants_json() else in_lines(records))
        return
    from dfm_mlflow.registry.describe import as_text
    from dfm_mlflow.registry.describe import describe as run

    found = run(options.model)
    click.echo(json.dumps(found, indent=2) if wants_json() else wrapped(as_text(found), every=True))


@cli.command()
@with_json
@options_of(ReviewOptions, argument="scores")
def review(**values: Any) -> None:
    """Make a page on which a person judges the pictures of SCORES.

    SCORES is a table of score or evaluate, train_scores.parquet, or a server's log folder. Keys: g
    good, b bad, u unsure.
    """
    options = ReviewOptions.parse(values)
    from dfm_mlflow.jobs.review import review as run

    result = run(options)
    tell(result.summary(), vars(result))


@cli.command()
@with_json
@with_experiment
@options_of(UpdateOptions, argument="model")
def update(experiment: str, **values: Any) -> None:
    """Teach MODEL what people said of pictures: the next version.

    MODEL is any model URI. Good ones join its training set, bad ones its test set.
    """
    options = UpdateOptions.parse(values)
    from dfm_mlflow.jobs.update import update as run

    result = run(options, experiment=experiment)
    if result.promoted:
        promotion = result.promoted
        _tell_trained(result.trained, promotion.summary(), promotion=promotion.record())
    else:
        _tell_trained(result.trained)


@cli.command()
@with_json
@click.argument("log_to")
@click.option("--before", required=True, help="Date, or time in ISO 8601; UTC unless it says so.")
@click.option(
    "--what",
    default="pictures",
    show_default=True,
    metavar="pictures|rows|all",
    help="Kept pictures, rows of scores, or both.",
)
def forget(log_to: str, before: str, what: str) -> None:
    """Delete what a served model kept before a date.

    LOG_TO is the folder or s3:// prefix that the server writes to; it may be running.
    """
    from dfm_mlflow.jobs.forget import forget as run

    result = run(log_to, before, what)
    tell(result.summary(), vars(result))


@cli.command("resume-logging")
@with_json
@click.argument("folder")
def log(folder: str) -> None:
    """Log and register what a failed tracking server left.

    FOLDER is the one that the failed run named.
    """
    from dfm_mlflow.tracking.kept import log_kept as run
    from dfm_mlflow.tracking.run import summary

    result = run(folder)
    where = {"run_id": result.run_id, "model_uri": result.model_uri}
    tell(summary({}, [], where), where)


@cli.command()
@with_json
@options_of(CompareOptions, argument="runs")
def compare(**values: Any) -> None:
    """Put RUNS side by side and tell progress from noise.

    RUNS are run ids, run names or model URIs; they are compared on the test pictures they share.
    """
    options = CompareOptions.parse(values)
    from dfm_mlflow.jobs.compare import compare as run

    result = run(options)
    table = json.loads(result.table.to_json(orient="split"))
    tell(result.summary(), {"table": table, "sentences": result.sentences}, every=True)


@cli.command()
@with_json
@with_experiment
@options_of(RecalibrateOptions, argument="model")
def recalibrate(experiment: str, **values: Any) -> None:
    """Give MODEL new thresholds from new good pictures.

    MODEL is any model URI; the result is a new version.
    """
    options = RecalibrateOptions.parse(values)
    from dfm_mlflow.jobs.recalibrate import recalibrate as run

    result = run(options, experiment=experiment)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    _tell_job(result, result.sentences, where)


@cli.command()
@with_json
@with_experiment
@options_of(UpgradeOptions, argument="model")
def upgrade(experiment: str, **values: Any) -> None:
    """Fit MODEL of format 1 again under today's rules, and compare both.

    MODEL is any model URI; the result is a new version.
    """
    options = UpgradeOptions.parse(values)
    from dfm_mlflow.jobs.upgrade import upgrade as run

    result = run(options, experiment=experiment)
    _tell_trained(result.trained, result.comparison)


@cli.command()
@with_json
@options_of(ExportOptions, argument="model", optional=["output"])
@click.argument("file", required=False)
def export(file: str | None, **values: Any) -> None:
    """Write MODEL as one ONNX graph, for machines without Python.

    MODEL is any model URI. One that was calibrated in bf16 or fp16 needs --images, good pictures
    that it was never fitted to.
    """
    if file is not None:
        warn_old("export MODEL FILE", "export MODEL --output FILE")
        values["output"] = file
    options = ExportOptions.parse({k: v for k, v in values.items() if v is not None})
    from dfm_mlflow.jobs.export import export as run

    result = run(options)
    tell(result.summary(), result.record())


@cli.command()
@with_json
@options_of(BundleOptions, argument="model")
def bundle(**values: Any) -> None:
    """Collect MODEL and every package it needs, for machines without internet.

    MODEL is any model URI; the folder holds install.sh.
    """
    options = BundleOptions.parse(values)
    from dfm_mlflow.jobs.bundle import bundle as run

    result = run(options)
    tell(result.summary(), result.record())


def main() -> None:
    """Run the command line; errors are one sentence on stderr and exit status 1."""
    # Else a tenth of a short command goes to looking at torch's objects and MLflow's, which stay.
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    try:
        cli(standalone_mode=True)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or "--debug" in sys.argv[1:]:
            raise
        click.echo(f"Error: {sentence}", err=True)
        sys.exit(1)


def _sentence(error: Exception) -> object:
    """What to tell of an error; None where it needs a traceback."""
    if isinstance(error, DfmError):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if "mlflow" not in sys.modules:
        return None
    from dfm_mlflow.tracking.outage import refusal

    return refusal(error)
