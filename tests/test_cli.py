import importlib
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

import dfm_mlflow
from dfm_mlflow.cli import cli, main
from dfm_mlflow.config import (
    CompareOptions,
    EvaluateOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    SweepOptions,
)
from dfm_mlflow.errors import ConfigError, DataError

module = importlib.import_module("dfm_mlflow.cli")


@pytest.mark.parametrize(
    ("verb", "model", "argument"),
    [
        ("train", Options, None),
        ("tune", Options, None),
        ("sweep", SweepOptions, None),
        ("evaluate", EvaluateOptions, None),
        ("promote", PromoteOptions, None),
        ("compare", CompareOptions, "runs"),
        ("recalibrate", RecalibrateOptions, "model"),
    ],
)
def test_a_command_has_every_option_in_both_spellings(verb, model, argument):
    command, fields = cli.commands[verb], model.model_fields
    shown = CliRunner().invoke(cli, [verb, "--help"]).output
    needed = [f"--{n}=1" for n, f in fields.items() if f.is_required() and n != argument]
    needed += ["one"] if argument else []
    parent = click.Context(cli, **cli.context_settings)
    for name, field in fields.items():
        assert field.description
        if name == argument:
            assert name.upper() in shown.splitlines()[0]
            continue
        dashed = name.replace("_", "-")
        assert f"--{dashed}" in shown
        for spelling in (dashed, name):
            words = [*needed, f"--{spelling}", "7"]
            assert command.make_context(verb, words, parent=parent).params[name] == "7"


def test_every_command_says_what_it_does():
    assert dfm_mlflow.__version__ in CliRunner().invoke(cli, ["--version"]).output
    for name, command in cli.commands.items():
        assert CliRunner().invoke(cli, [name, "-h"]).exit_code == 0
        assert command.get_short_help_str(200).endswith("."), name


def test_errors_are_one_sentence_on_stderr():
    done = subprocess.run(
        [sys.executable, "-m", "dfm_mlflow", "train", "--fpr", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: fpr='2' is not valid")
    assert "Traceback" not in done.stderr


SENTENCES = [
    (DataError("a sentence."), "a sentence."),
    (
        FileNotFoundError(2, "No such file or directory", "a.png"),
        "a.png: No such file or directory.",
    ),
    (MlflowException("no such run"), "MLflow refuses (INTERNAL_ERROR, no such run)"),
]


def failing(monkeypatch, error, *arguments):
    def fail(**_):
        raise error

    monkeypatch.setattr(module, "cli", fail)
    monkeypatch.setattr(sys, "argv", ["dfm-mlflow", *arguments])


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda v: type(v).__name__)
def test_what_is_known_to_fail_is_told_without_a_traceback(monkeypatch, capsys, error, sentence):
    failing(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"Error: {sentence}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    failing(monkeypatch, error, "--debug", "train")
    with pytest.raises(type(error)):
        main()


@pytest.mark.parametrize("error", [ZeroDivisionError("a mistake"), OSError("no file in it")])
def test_what_nobody_expected_keeps_its_traceback(monkeypatch, error):
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        main()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs images, and either"),
        (["--url", "http://h:1"], "needs images, and either"),
        (["pictures"], "needs images, and either"),
        (["--url", "http://h:1", "--model", "m", "pictures"], "needs images, and either"),
        (["--url", "http://h:1", "--engine", "spark", "pictures"], "engine.spark needs .*model"),
        (["--model", "m", "pictures"], "needs one folder, prefix or pattern, and .*output"),
        (["--model", "m", "--output", "a/", "one", "two"], "needs one folder"),
        (["--model", "m", "--output", "a/", "--fpr", "0.1", "one"], "fpr is asked of a server"),
        (["--model", "m", "--output", "a/", "--anomaly-map", "one"], "anomaly.map is asked of"),
        (["--model", "m", "--output", "a.csv", "one"], r"output='a\.csv' is not valid"),
    ],
)
def test_score_refuses_what_does_not_go_together(arguments, words):
    done = CliRunner().invoke(cli, ["score", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert re.search(words, str(done.exception))
