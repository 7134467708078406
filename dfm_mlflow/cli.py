"""The command line, generated from the options; ``MLproject`` calls only this."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import click

import dfm_mlflow
from dfm_mlflow.config import (
    CompareOptions,
    EvaluateOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    StrictOptions,
    SweepOptions,
)
from dfm_mlflow.errors import DfmError


def options_of(
    model: type[StrictOptions], argument: str | None = None
) -> Callable[[Callable], Callable]:
    """Give a command one option for each field of a model, other than the one given by position."""

    def add(command: Callable) -> Callable:
        for name, field in reversed(model.model_fields.items()):
            if name == argument:
                many = field.annotation not in (str, int, float, bool)
                command = click.argument(name, nargs=-1 if many else 1, required=True)(command)
                continue
            default = str(field.default).lower() if field.annotation is bool else str(field.default)
            spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
            required = field.is_required()
            command = click.option(
                *spellings, name, default=None if required else default, required=required,
                show_default=not required, help=field.description, metavar=name.upper(),
            )(command)  # fmt: skip
        return command

    return add


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dfm_mlflow.__version__, prog_name="dfm-mlflow")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Image anomaly detection by Deep Feature Modeling, in MLflow's own words."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "botocore", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@cli.command()
@options_of(Options)
def train(**values: Any) -> None:
    """Fit a detector to good pictures, evaluate it, log it and register it."""
    options = Options.parse(values)
    options.resolve()  # what cannot work is refused before torch and MLflow load
    from dfm_mlflow.jobs.run import summary
    from dfm_mlflow.jobs.train import train as run

    result = run(options)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, result.sentences, where))


@cli.command()
@options_of(Options)
def tune(**values: Any) -> None:
    """Choose layers, pooling and the like on synthetic defects, then train as train does."""
    options = Options.parse(values)
    options.resolve()
    from dfm_mlflow.jobs.run import summary
    from dfm_mlflow.jobs.tune import tune as run

    result = run(options).trained
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, result.sentences, where))


@cli.command()
@options_of(SweepOptions)
def sweep(**values: Any) -> None:
    """Evaluate every configuration of a grid on every category; no model is kept."""
    options = SweepOptions.parse(values)
    options.check()
    from dfm_mlflow.jobs.sweep import sweep as run

    result = run(options)
    click.echo(result.summary())
    if error := result.error():
        raise error


@cli.command()
@options_of(EvaluateOptions)
def evaluate(**values: Any) -> None:
    """Score new pictures: metrics where they are labelled, and drift in any case."""
    options = EvaluateOptions.parse(values)
    from dfm_mlflow.jobs.evaluate import evaluate as run
    from dfm_mlflow.jobs.run import summary

    result = run(options)
    click.echo(summary(result.metrics, result.sentences, {"run_id": result.run_id}))


@cli.command()
@click.option("--url", required=True, help="Server that mlflow models serve started.")
@click.option("--output", help="Write a table here, .parquet or .csv, and print nothing.")
@click.option("--fpr", type=float, help="False-positive rate; the model's own by default.")
@click.option("--anomaly-map", is_flag=True, help="Ask for anomaly maps.")
@click.option("--on-error", default="raise", show_default=True, metavar="raise|report")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for one request.")
@click.argument("images", nargs=-1, required=True)
def score(url: str, images: tuple[str, ...], output: str | None, **values: Any) -> None:
    """Score pictures, files or folders of them, on a server."""
    from dfm_mlflow.client import find_pictures, write_table
    from dfm_mlflow.client import score as score_on_server

    paths = find_pictures(images)
    write = write_table(output)  # a name that cannot be written is refused before the work
    table = score_on_server(url, paths, **values)
    table.insert(0, "path", paths)
    write(table)


@cli.command()
@options_of(PromoteOptions)
def promote(**values: Any) -> None:
    """Let an alias point to a registered version, if it passes every gate."""
    options = PromoteOptions.parse(values)
    options.check()
    from dfm_mlflow.jobs.promote import promote as run

    click.echo(run(options).summary())


@cli.command()
@click.argument("model")
@click.option("--alias", default="production", show_default=True, help="Alias to move back.")
@click.option("--reason", default="none", show_default=True, help="Why, for the record.")
def rollback(model: str, alias: str, reason: str) -> None:
    """Return an alias of a registered MODEL to the version that it had before."""
    from dfm_mlflow.jobs.registry import rollback as run

    move = run(model, alias, reason)
    click.echo(f"{alias} of {model} points to version {move.version}; before, to {move.before}.")


@cli.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="JSON for scripts.")
def describe(uri: str, as_json: bool) -> None:
    """Say where a model comes from: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ or a path."""
    from dfm_mlflow.jobs.describe import describe as run
    from dfm_mlflow.jobs.describe import in_words

    found = run(uri)
    click.echo(json.dumps(found, indent=2) if as_json else in_words(found))


@cli.command()
@click.argument("folder")
def log(folder: str) -> None:
    """Log and register the results in FOLDER, which a failed tracking server left there."""
    from dfm_mlflow.jobs.kept import log_kept as run
    from dfm_mlflow.jobs.run import summary

    result = run(folder)
    where = {"run_id": result.run_id, "model_uri": result.model_uri}
    click.echo(summary({}, [], where))


@cli.command()
@options_of(CompareOptions, argument="runs")
def compare(**values: Any) -> None:
    """Put RUNS side by side, and tell progress from noise on the test pictures that they share."""
    options = CompareOptions.parse(values)
    from dfm_mlflow.jobs.compare import compare as run

    click.echo(run(options).summary())


@cli.command()
@options_of(RecalibrateOptions, argument="model")
def recalibrate(**values: Any) -> None:
    """Give MODEL, any model URI, new thresholds from new good pictures, as a new version."""
    options = RecalibrateOptions.parse(values)
    from dfm_mlflow.jobs.recalibrate import recalibrate as run
    from dfm_mlflow.jobs.run import summary

    result = run(options)
    where = {"run_id": result.run_id, "model_uri": result.registered_uri}
    click.echo(summary(result.metrics, result.sentences, where))


@cli.command()
@click.argument("model")
@click.argument("output")
def export(model: str, output: str) -> None:
    """Write MODEL, any model URI, as one ONNX graph into OUTPUT, for machines without Python."""
    for noisy in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from dfm_mlflow.export import export as run

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


def _sentence(error: Exception) -> Exception | None:
    """What to tell of an error; None where it needs a traceback."""
    if isinstance(error, DfmError) or "mlflow" not in sys.modules:
        return error if isinstance(error, DfmError) else None
    from dfm_mlflow.jobs.tracking import refusal

    return refusal(error)
