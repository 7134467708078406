"""The result of a command on standard output: for people, or as one line of JSON."""

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfm_mlflow.console import log
from dfm_mlflow.console.verb import VerbOption

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # rows of a table of scores
_JSON = "dfm_mlflow.json"


def with_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a `command` the option ``--json``; :func:`tell` follows it."""

    def keep(ctx: click.Context, _: click.Parameter, given: bool) -> None:
        ctx.meta[_JSON] = given

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=keep,
        cls=VerbOption,
        help="The result as one line of JSON, for scripts.",
    )(command)


def wants_json() -> bool:
    """Whether the command that runs was given ``--json``."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def tell(text: str, record: Mapping[str, Any], then: str = "", *, every: bool = False) -> None:
    """Print a result."""
    if wants_json():
        click.echo(json.dumps(dict(record), default=str))
        return
    click.echo(wrapped(text, every=every))
    if then and not log.is_quiet():
        click.echo(f"\n{then}")


def wrapped(text: str, width: int = 100, *, every: bool = False) -> str:
    """Break sentences that are wider than `width`; words without spaces stay whole."""
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip()) + (23 if line.startswith("  ") else 0)
        lines.append(
            line
            if len(line) <= width or not (every or line.rstrip().endswith("."))
            else textwrap.fill(
                line,
                width,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
                replace_whitespace=False,
            )
        )
    return "\n".join(lines)


def next_steps(model: str, report: str | None, ui: str) -> str:
    """Write the commands that follow a training."""
    steps = {
        "report": report or "report/report.html among the run's artifacts",
        "look": ui,
        "score": f"dfm-mlflow score --model {model} IMAGES --output scores.csv",
        "serve": f"mlflow models serve -m {model} --env-manager local --port 5001",
    }
    if model.startswith("models:/") and "/" in model.removeprefix("models:/"):
        steps["promote"] = f"dfm-mlflow promote {model} --alias production"
    return "\n".join(["Next", *(f"  {name:8s} {step}" for name, step in steps.items())])


def where_to_look(tracking: str, experiment: str, run_id: str) -> str:
    """Say how to see a run."""
    if tracking.startswith("http"):
        return f"{tracking.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {tracking}   (choose Model training)"


def score_lines(table: "pd.DataFrame", width: int | None = None, total: int | None = None) -> str:
    """Write scores as a table that fits the terminal, the most anomalous rows first."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    ordered = table.sort_values("p_value", kind="stable", na_position="last")
    shown = ordered.head(SHOWN)
    several = table["predicted_class"].nunique() > 1
    heads = ["p-value", "score", "anomalous", *(["class"] if several else []), "image"]
    rows = [heads]
    for row in shown.to_dict("records"):
        if isinstance(row["error"], str):
            cells = ["", "", "unreadable", *([""] if several else []), row["path"]]
        else:
            of_class = [str(row["predicted_class"])] if several else []
            yes = "yes" if row["is_anomaly"] else "no"
            if isinstance(row.get("decision"), str):
                yes = str(row["decision"])
            numbers = [f"{row['p_value']:.4f}", f"{row['anomaly_score']:.4g}"]
            cells = [*numbers, yes, *of_class, row["path"]]
        rows.append([str(cell) for cell in cells])
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(12, width - sum(columns[:-1]) - 2 * (len(columns) - 1))
    lines = []
    for cells in rows:
        head = [cell.ljust(n) for cell, n in zip(cells[:-1], columns[:-1], strict=True)]
        lines.append("  ".join([*head, _shortened(cells[-1], room)]).rstrip())
    rest = (len(table) if total is None else total) - len(shown)
    if rest > 0:
        lines.append(f"... and {rest} more.")
    return "\n".join(lines)


def _shortened(text: str, room: int) -> str:
    """Keep the end of a path, which tells files apart."""
    return text if len(text) <= room else "..." + text[-(room - 3) :]


def report_file(artifacts: str) -> str | None:
    """Give the local file of a run's report, if its artifacts lie on this machine."""
    path = Path(artifacts.removeprefix("file://"), "report", "report.html")
    return str(path) if "://" not in artifacts.removeprefix("file://") and path.is_file() else None
