"""The command line, generated from the options; ``MLproject`` calls only this."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import click

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.errors import DfmError


def options_of_model(command: Callable) -> Callable:
    """Give a command one option for each field of :class:`Options`."""
    for name, field in reversed(Options.model_fields.items()):
        default = str(field.default).lower() if field.annotation is bool else str(field.default)
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        command = click.option(
            *spellings, name, default=default, show_default=True,
            help=field.description, metavar=name.upper(),
        )(command)  # fmt: skip
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dfm_mlflow.__version__, prog_name="dfm-mlflow")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Image anomaly detection by Deep Feature Modeling, in MLflow's own words."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "botocore", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@cli.command()
@options_of_model
def train(**values: Any) -> None:
    """Fit a detector to good pictures, evaluate it, log it and register it."""
    options = Options.parse(values)
    options.resolve()  # what cannot work is refused before torch and MLflow load
    from dfm_mlflow.jobs.train import summary
    from dfm_mlflow.jobs.train import train as run

    click.echo(summary(run(options)))


def main() -> None:
    """Run the command line; errors are one sentence on stderr and exit status 1."""
    try:
        cli(standalone_mode=True)
    except DfmError as error:
        if "--debug" in sys.argv[1:]:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
