"""Options of the command line, made from the models of options."""

import re
from collections.abc import Callable
from typing import Any

import click
from pydantic.fields import FieldInfo

from dfm_mlflow.config.base import StrictOptions


def options_of(
    model: type[StrictOptions], argument: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of a `model`, and its `argument` by position.

    Returns
    -------
    callable
        Decorates a function that takes the options as texts.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name == argument:
                many = field.annotation not in (str, int, float, bool)
                command = click.argument(name, nargs=-1 if many else 1, required=True)(command)
                continue
            default = str(field.default).lower() if field.annotation is bool else str(field.default)
            required = field.is_required()
            command = click.option(
                f"--{name.replace('_', '-')}",
                name,
                default=None if required else default,
                required=required,
                show_default=not required,
                help=field.description,
                metavar=_metavar(name, field),
            )(command)
        return command

    return add


def with_experiment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a `command` the option ``--experiment``; ``mlflow run`` has ``--experiment-name``."""
    return click.option(
        "--experiment",
        default="auto",
        show_default=True,
        help="Experiment of the run; auto is what MLFLOW_EXPERIMENT_NAME or _ID say, else the "
        "category.",
    )(command)


def _metavar(name: str, field: FieldInfo) -> str:
    """Name the values of an option where they are few."""
    if field.annotation is bool:
        return "true|false"
    patterns = [p for m in field.metadata if (p := getattr(m, "pattern", None))]
    few = re.fullmatch(r"\^\(([\w.|\\-]+)\)\$", patterns[0]) if patterns else None
    return few[1].replace("\\", "") if few else name.upper()
