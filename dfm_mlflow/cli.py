"""The command line, generated from ``config`` where options are there; ``MLproject`` calls it."""

import json
import logging
import sys
from typing import Any

import click

import dfm_mlflow
from dfm_mlflow.config import (
    CompareOptions,
    EvaluateOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    ReviewOptions,
    ScoreOptions,
    SweepOptions,
    UpdateOptions,
    UpgradeOptions,
)
from dfm_mlflow.config.click_options import options_of, with_experiment
from dfm_mlflow.errors import ConfigError, DfmError

_EPILOG = """Exit status: 0 done; 1 refused or failed, with one sentence on stderr; 2 a command line
that is not understood. Completion in bash: eval "$(_DFM_MLFLOW_COMPLETE=bash_source dfm-mlflow)"
"""


# Options are written as on a command line; MLproject writes them as in Python.
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


@click.group(context_settings=_CONTEXT, epilog=_EPILOG)
@click.version_option(dfm_mlflow.__version__, prog_name="dfm-mlflow")
@click.option("--debug", is_flag=True, help="Show tracebacks; give it before the command.")
def cli(debug: bool) -> None:
    """Image anomaly detection by Deep Feature Modeling, in MLflow's own words."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "botocore", "matplotlib", "PIL", "py4j"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@cli.command()
@with_experiment
@options_of(Options)
def train(experiment: str, **values: Any) -> None:
    """Fit a detector to good pictures, evaluate, log, register it."""
    options = Options.parse(values)
    from dfm_mlflow.jobs.train import train as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, [result.verdict.text, *result.sentences], where))


@cli.command()
@with_experiment
@options_of(Options)
def tune(experiment: str, **values: Any) -> None:
    """Choose the configuration on synthetic defects, then train.

    What is given is kept; normalisation is chosen on synthetic defects, copies by residuals.
    """
    options = Options.parse(values)
    from dfm_mlflow.jobs.tune import tune as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment).trained
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, [result.verdict.text, *result.sentences], where))


@cli.command()
@with_experiment
@options_of(SweepOptions)
def sweep(experiment: str, **values: Any) -> None:
    """Evaluate a grid of configurations on many categories.

    No model is kept: train the best.
    """
    options = SweepOptions.parse(values)
    from dfm_mlflow.jobs.sweep import sweep as run

    result = run(options, experiment=experiment)
    click.echo(result.summary())
    if error := result.error():
        raise error


@cli.command()
@with_experiment
@options_of(EvaluateOptions)
def evaluate(experiment: str, **values: Any) -> None:
    """Score new pictures: metrics if labelled, drift in any case."""
    options = EvaluateOptions.parse(values)
    from dfm_mlflow.jobs.evaluate import evaluate as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment)
    sentences = [result.verdict.text, *result.sentences]
    click.echo(summary(result.metrics, sentences, {"run_id": result.run_id}))


@cli.command()
@click.option("--url", help="Server that mlflow models serve started.")
@click.option("--model", help="Instead of a server: any MLflow model URI, loaded here.")
@click.option("--images", "found", help="With --model, the same as IMAGES.")
@click.option("--output", help="Table: .parquet or .csv; with --model .parquet or a folder/.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|spark",
    help="With --model: this machine, or Spark's executors.",
)
@click.option(
    "--category",
    default="auto",
    show_default=True,
    help="Category that all images are known to be of.",
)
@click.option(
    "--part-by",
    default="none",
    show_default=True,
    metavar="REGEX",
    help="With --model: one decision for images whose paths match alike, such as views of a part.",
)
@click.option("--overlays", help="Folder for pictures with their anomaly maps drawn over them.")
@click.option("--fpr", type=float, help="With --url: false-positive rate; default: the model's.")
@click.option("--anomaly-map", is_flag=True, help="With --url: add anomaly maps.")
@click.option(
    "--on-error",
    default="raise",
    show_default=True,
    metavar="raise|report",
    help="With --url: stop at a picture that cannot be read, or say so in its row.",
)
@click.option(
    "--timeout", default=60.0, show_default=True, help="With --url: seconds for one request."
)
@click.argument("images", nargs=-1)
def score(
    url: str | None,
    model: str | None,
    found: str | None,
    images: tuple[str, ...],
    output: str | None,
    engine: str,
    category: str,
    part_by: str,
    overlays: str | None,
    **values: Any,
) -> None:
    """Score pictures on a server, here, or in Spark's executors.

    IMAGES are files or folders; with --model one folder, s3:// prefix or pattern.
    """
    images = (*images, found) if found else images
    if (url is None) == (model is None) or not images:
        raise ConfigError("score needs images, and either --url http://HOST:PORT or --model URI.")
    if model is not None:
        given = {"engine": engine, "category": category, "part_by": part_by}
        given["overlays"] = overlays or "none"
        _score_here(model, images, output, given, values)
        return
    if part_by != "none":
        raise ConfigError("--part-by needs --model: combine the rows of a server yourself.")
    if engine != "local":
        raise ConfigError(f"--engine {engine} needs --model: a server has an engine of its own.")
    from dfm_mlflow.client import find_pictures, write_overlays, write_table
    from dfm_mlflow.client import score as score_on_server

    assert url is not None
    paths = find_pictures(images)
    write = write_table(output)  # a name that cannot be written is refused before the work
    with_maps = values.pop("anomaly_map")
    wanted = with_maps or overlays is not None
    table = score_on_server(url, paths, category=category, anomaly_map=wanted, **values)
    if overlays is not None:
        write_overlays(overlays, paths, table["anomaly_map"], images)
        table["anomaly_map"] = table["anomaly_map"].where(with_maps, None)
    table.insert(0, "path", paths)
    write(table)


def _score_here(
    model: str,
    images: tuple[str, ...],
    output: str | None,
    given: dict[str, Any],
    values: dict[str, Any],
) -> None:
    if len(images) > 1 or output is None:
        raise ConfigError("With --model score needs one folder, prefix or pattern, and --output.")
    context = click.get_current_context()
    for name in values:  # what only a server is asked
        if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT:
            spelling = "--" + name.replace("_", "-")
            raise ConfigError(f"{spelling} is asked of a server alone: leave it out or give --url.")
    options = ScoreOptions.parse({"model": model, "images": images[0], "output": output, **given})
    from dfm_mlflow.jobs.score import score as run

    click.echo(run(options).summary())


@cli.command()
@with_experiment
@options_of(PromoteOptions)
def promote(experiment: str, **values: Any) -> None:
    """Move an alias to a registered version that passes all gates."""
    options = PromoteOptions.parse(values)
    from dfm_mlflow.registry.promote import promote as run

    click.echo(run(options, experiment=experiment).summary())


@cli.command()
@click.argument("model")
@click.option("--alias", default="production", show_default=True, help="Alias to move back.")
@click.option("--reason", default="none", show_default=True, help="Why, for the record.")
def rollback(model: str, alias: str, reason: str) -> None:
    """Move an alias of a registered MODEL back to what it had."""
    from dfm_mlflow.registry.aliases import rollback as run

    move = run(model, alias, reason)
    click.echo(f"{alias} of {model} points to version {move.version}; before, to {move.before}.")


@cli.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="JSON for scripts.")
@click.option("--history", "of_all", is_flag=True, help="All versions: does the line get better?")
def describe(uri: str, as_json: bool, of_all: bool) -> None:
    """Say where a model comes from.

    URI is models:/NAME@ALIAS, models:/NAME/VERSION, runs:/... or a path; with --history a NAME.
    """
    if of_all:
        from dfm_mlflow.registry.history import as_dicts, history, in_lines

        records = history(uri)
        click.echo(json.dumps(as_dicts(records), indent=2) if as_json else in_lines(records))
        return
    from dfm_mlflow.registry.describe import describe as run
    from dfm_mlflow.registry.describe import in_words

    found = run(uri)
    click.echo(json.dumps(found, indent=2) if as_json else in_words(found))


@cli.command()
@options_of(ReviewOptions, argument="scores")
def review(**values: Any) -> None:
    """Make a page on which a person judges the pictures of SCORES.

    SCORES is a table of score or evaluate, train_scores.parquet, or a server's log folder. Keys: g
    good, b bad, u unsure.
    """
    options = ReviewOptions.parse(values)
    from dfm_mlflow.jobs.review import review as run

    click.echo(run(options).summary())


@cli.command()
@with_experiment
@options_of(UpdateOptions, argument="model")
def update(experiment: str, **values: Any) -> None:
    """Teach MODEL what people said of pictures: the next version.

    MODEL is any model URI. Good ones join its training set, bad ones its test set.
    """
    options = UpdateOptions.parse(values)
    from dfm_mlflow.jobs.update import update as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment)
    trained = result.trained
    where = {"run_id": trained.run_id, "model_uri": trained.registered_uri}
    sentences = [trained.verdict.text, *trained.sentences]
    click.echo(summary(trained.metrics, sentences, where))
    if result.promoted:
        click.echo(result.promoted.summary())


@cli.command()
@click.argument("folder")
def log(folder: str) -> None:
    """Log and register what a failed tracking server left.

    FOLDER is the one that the failed run named.
    """
    from dfm_mlflow.tracking.kept import log_kept as run
    from dfm_mlflow.tracking.run import summary

    result = run(folder)
    where = {"run_id": result.run_id, "model_uri": result.model_uri}
    click.echo(summary({}, [], where))


@cli.command()
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

    click.echo(run(log_to, before, what).summary())


@cli.command()
@options_of(CompareOptions, argument="runs")
def compare(**values: Any) -> None:
    """Put RUNS side by side and tell progress from noise.

    RUNS are run ids, run names or model URIs; they are compared on the test pictures they share.
    """
    options = CompareOptions.parse(values)
    from dfm_mlflow.jobs.compare import compare as run

    click.echo(run(options).summary())


@cli.command()
@with_experiment
@options_of(RecalibrateOptions, argument="model")
def recalibrate(experiment: str, **values: Any) -> None:
    """Give MODEL new thresholds from new good pictures.

    MODEL is any model URI; the result is a new version.
    """
    options = RecalibrateOptions.parse(values)
    from dfm_mlflow.jobs.recalibrate import recalibrate as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, result.sentences, where))


@cli.command()
@with_experiment
@options_of(UpgradeOptions, argument="model")
def upgrade(experiment: str, **values: Any) -> None:
    """Fit MODEL of format 1 anew under today's rules, and compare both.

    MODEL is any model URI; the result is a new version.
    """
    options = UpgradeOptions.parse(values)
    from dfm_mlflow.jobs.upgrade import upgrade as run
    from dfm_mlflow.tracking.run import summary

    result = run(options, experiment=experiment)
    trained = result.trained
    where = {"run_id": trained.run_id, "model_uri": trained.registered_uri}
    sentences = [trained.verdict.text, *trained.sentences, result.comparison]
    click.echo(summary(trained.metrics, sentences, where))


@cli.command()
@click.argument("model")
@click.argument("output")
def export(model: str, output: str) -> None:
    """Write MODEL as one ONNX graph, for machines without Python.

    MODEL is any model URI, OUTPUT a file that ends in .onnx.
    """
    for noisy in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from dfm_mlflow.export.graph import export as run

    result = run(model, output)
    click.echo(
        f"{result.path} has {result.megabytes:.1f} MB and scores within {result.difference:.1g} "
        "of the model."
    )


def main() -> None:
    """Run the command line; errors are one sentence on stderr and exit status 1."""
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
