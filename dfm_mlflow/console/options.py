"""Options of a command from its model in ``config``: names, groups, flags, values in ``--help``."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import click
from pydantic.fields import FieldInfo

from dfm_mlflow.config import StrictOptions
from dfm_mlflow.console.complete import completion_of
from dfm_mlflow.console.verb import VerbOption

Command = Callable[..., Any]

# Headings of --help, and the options below each; what stands nowhere comes under the last.
GROUPS = {
    "Images": "category data good bad masks images model version categories verdicts add remove "
    "exclude group_by test_copies part_by roi bits float_range max_megapixels",
    "Features": "preset backbone layers pooling image_size resize tile augment weights",
    "Score": "subspace pca_level score aggregate normalize blur",
    "Decision": "fpr tail contamination retest cost_escape cost_overkill defect_rate",
    "Gates": "min_auroc min_recall max_fpr margin margin_recall min_images max_slowdown max_growth "
    "confidence force dry_run",
    "Result": "output overlays anomaly_map on_error registered_model alias reason experiment "
    "copy_to promote",
    "Machine": "device precision engine cache seed timeout url",
}
OTHER = "Further options"
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}


def options_of(
    model: type[StrictOptions], argument: str | None = None, optional: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Give a command one option for each field of a `model`."""

    def add(command: Command) -> Command:
        fields = model.model_fields
        run = _joining(command, argument, required=argument is None or argument not in optional)
        for name, field in reversed(fields.items()):
            if name == argument:
                many = _is_many(field)
                run = click.argument(
                    name,
                    nargs=-1 if many else 1,
                    required=False,
                    metavar=name.upper() + ("..." if many else ""),
                    shell_complete=completion_of(name),
                )(run)
            run = _option(name, field, name == argument, name in optional)(run)
        return run

    return add


def given_as(name: str) -> str:
    """Name the parameter of ``--name``, where `name` may also stand by position."""
    return f"{name}_given"


def group_of(name: str) -> str:
    """Name the heading of ``--help`` that the option called `name` stands below."""
    return _GROUP_OF.get(name, OTHER)


def with_experiment(command: Command) -> Command:
    """Give a `command` the option ``--experiment``; ``mlflow run`` has ``--experiment-name``."""
    return click.option(
        "--experiment",
        default="auto",
        cls=VerbOption,
        group=group_of("experiment"),
        help="Experiment of the run; auto is what MLFLOW_EXPERIMENT_NAME or _ID say, else the "
        "category.  [default: auto]",
    )(command)


def _option(name: str, field: FieldInfo, by_position: bool, optional: bool) -> Any:
    dashed = name.replace("_", "-")
    required = field.is_required() and not (by_position or optional)
    shared: dict[str, Any] = {"cls": VerbOption, "group": group_of(name), "required": required}
    if field.annotation is bool:
        names = f"--{dashed}/--no-{dashed}"
        return click.option(names, name, default=field.default, help=field.description, **shared)
    default = None if field.is_required() or by_position else str(field.default)
    return click.option(
        f"--{dashed}",
        given_as(name) if by_position else name,
        default=default,
        help=_help(field, default),
        metavar=_metavar(name, field),
        shell_complete=completion_of(name, _few(field)),
        **shared,
    )


def _joining(command: Command, argument: str | None, *, required: bool) -> Command:
    """Take the value of `argument` from where it stands."""
    if argument is None:
        return command

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        values[argument] = joined(argument, values[argument], values.pop(given_as(argument)))
        if values[argument] is None or values[argument] == ():
            if not required:
                return command(**values)
            raise click.UsageError(f"Missing argument '{argument.upper()}'.")
        return command(**values)

    return run


def joined(name: str, by_position: Any, by_name: str | None) -> Any:
    """Give the one value that stands by position or by name, or all of several."""
    if isinstance(by_position, tuple):
        return (*by_position, by_name) if by_name is not None else by_position
    if by_position is not None and by_name not in (None, by_position):
        raise click.UsageError(
            f"{name.upper()} is {by_position} and --{name} is {by_name}: give one of them."
        )
    return by_name if by_position is None else by_position


def _is_many(field: FieldInfo) -> bool:
    return field.annotation not in (str, int, float, bool)


def _few(field: FieldInfo) -> list[str]:
    """Values of an option that takes nothing but a few words."""
    patterns = [p for m in field.metadata if (p := getattr(m, "pattern", None))]
    few = re.fullmatch(r"\^\(([\w.|\\-]+)\)\$", patterns[0]) if patterns else None
    return few[1].replace("\\", "").split("|") if few else []


def _metavar(name: str, field: FieldInfo) -> str:
    return "|".join(_few(field)) or name.upper()


def _help(field: FieldInfo, default: str | None) -> str:
    """Say what an option means, between what numbers its value lies, and what it is by default."""
    extra = field.json_schema_extra
    expected = str(extra["expected"]) if isinstance(extra, dict) else ""
    numbers = re.search(r"\d", expected) and not _few(field)
    known = [expected] if numbers else []
    known += [f"default: {default}"] if default is not None else []
    known += ["required"] if field.is_required() and default is None else []
    return f"{field.description}  [{'; '.join(known)}]" if known else str(field.description)
