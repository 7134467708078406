"""One command: its grouped help, flags that also take true and false, old spellings, how loud."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from dfm_mlflow.console import log

OUTPUT = "What is printed"
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class VerbOption(click.Option):
    """An option below a heading of ``--help``."""

    def __init__(self, *args: Any, group: str = OUTPUT, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Give the line of ``--help`` in `ctx`; of a flag, the spelling that changes something."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return (self.secondary_opts if self.default else self.opts)[0], record[1]


class Verb(click.Command):
    """A command whose options are grouped, and whose old spellings warn."""

    def __init__(self, *args: Any, old: dict[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.old = old or {}
        self.params += _loudness()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line `args` in `ctx`; flags may be followed by true or false."""
        return super().parse_args(ctx, list(self._rewritten(ctx, args)))

    def _rewritten(self, ctx: click.Context, args: Sequence[str]) -> Iterator[str]:
        flags = {p.opts[0]: p.secondary_opts[0] for p in self.params if p.secondary_opts}
        words = list(args)
        while words:
            word = words.pop(0)
            if word == "--" or not word.startswith("--"):
                yield word
                continue
            name, given, value = word.partition("=")
            name = name.replace("_", "-")
            if name in self.old:
                new = self.old[name]
                if not ctx.resilient_parsing:
                    warn_old(f"{self.name} {name}", new)
                name = new
            if name not in flags:
                yield name + given + value
                continue
            if not given and words and words[0].lower() in _YES + _NO:
                value = words.pop(0)
            elif given and value.lower() not in _YES + _NO:
                raise click.UsageError(f"{name}={value} is not valid: give true or false.")
            yield flags[name] if value.lower() in _NO else name

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of `ctx` below their headings with a `formatter`, the output's last."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = getattr(parameter, "group", OUTPUT)
                rows.setdefault(group, []).append(record)
        if OUTPUT in rows:
            rows[OUTPUT] = rows.pop(OUTPUT)
        for group, records in rows.items():
            with formatter.section(group):
                formatter.write_dl(records)


class Verbs(click.Group):
    """The commands."""

    command_class = Verb

    def __init__(self, *args: Any, old: dict[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.old = old or {}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find in `ctx` a command by `cmd_name`, which may be an old one."""
        if cmd_name in self.old and cmd_name not in self.commands:
            if not ctx.resilient_parsing:
                warn_old(cmd_name, self.old[cmd_name])
            cmd_name = self.old[cmd_name]
        return super().get_command(ctx, cmd_name)


def warn_old(before: str, now: str) -> None:
    """Say on standard error that the spelling `before` goes, and what it is `now`."""
    click.echo(
        f"Warning: {before} is called {now} now; the old spelling goes with version 0.3.", err=True
    )


def _loudness() -> list[click.Parameter]:
    def say(level: str) -> Any:
        def set_level(ctx: click.Context, _: click.Parameter, given: bool) -> None:
            if given and not ctx.resilient_parsing:
                log.start(level)

        return set_level

    shared: dict[str, Any] = {"is_flag": True, "expose_value": False}
    return [
        VerbOption(
            ["-q", "--quiet"],
            help="Only warnings, errors and the result.",
            callback=say(log.QUIET),
            **shared,
        ),
        VerbOption(
            ["-v", "--verbose"],
            help="The whole log, MLflow's with it.",
            callback=say(log.VERBOSE),
            **shared,
        ),
        VerbOption(["--debug"], help="Tracebacks of errors.", **shared),
    ]
