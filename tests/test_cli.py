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
    BundleOptions,
    CompareOptions,
    DescribeOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    RollbackOptions,
    ScoreOptions,
    SweepOptions,
    UpgradeOptions,
)
from dfm_mlflow.console.options import OTHER, given_as
from dfm_mlflow.errors import ConfigError, DataError

module = importlib.import_module("dfm_mlflow.cli")


VERBS = [
    ("train", Options, None),
    ("tune", Options, None),
    ("sweep", SweepOptions, None),
    ("evaluate", EvaluateOptions, "model"),
    ("score", ScoreOptions, "images"),
    ("promote", PromoteOptions, "model"),
    ("compare", CompareOptions, "runs"),
    ("recalibrate", RecalibrateOptions, "model"),
    ("upgrade", UpgradeOptions, "model"),
    ("describe", DescribeOptions, "model"),
    ("rollback", RollbackOptions, "model"),
    ("export", ExportOptions, "model"),
    ("bundle", BundleOptions, "model"),
]
PARENT = click.Context(cli, **cli.context_settings)


def parsed(verb, words):
    return cli.commands[verb].make_context(verb, list(words), parent=PARENT).params


@pytest.mark.parametrize(("verb", "model", "argument"), VERBS)
def test_a_command_has_every_option_in_both_spellings(verb, model, argument):
    fields = model.model_fields
    shown = CliRunner().invoke(cli, [verb, "--help"]).output
    needed = [f"--{n}=1" for n, f in fields.items() if f.is_required() and n != argument]
    for name, field in fields.items():
        assert field.description
        dashed = name.replace("_", "-")
        assert (f"--no-{dashed}" if field.default is True else f"--{dashed}") in shown
        if name == argument:
            assert name.upper() in shown.splitlines()[0]
            assert parsed(verb, [*needed, "--" + name, "7"])[given_as(name)] == "7"
            position = parsed(verb, [*needed, "7"])[name]
            assert position == (("7",) if isinstance(position, tuple) else "7")
            continue
        for spelling in (dashed, name):
            words = [*needed, f"--{spelling}"]
            if field.annotation is not bool:
                assert parsed(verb, [*words, "7"])[name] == "7"
                continue
            assert parsed(verb, words)[name] is True
            for text, value in (("true", True), ("false", False)):  # as MLproject writes them
                assert parsed(verb, [*words, text])[name] is value
                assert parsed(verb, [*words[:-1], f"--{spelling}={text}"])[name] is value
            assert parsed(verb, [*needed, f"--no-{spelling}"])[name] is False


def test_a_flag_says_what_it_may_be():
    done = CliRunner().invoke(cli, ["train", "--cache=perhaps"])
    assert done.exit_code == 2
    assert "--cache=perhaps is not valid: give true or false." in done.output


def test_help_has_groups_ranges_and_room():
    shown = CliRunner().invoke(cli, ["train", "--help"], terminal_width=100).output
    headings = re.findall(r"^(\S.*):$", shown, re.M)
    assert headings[-1] == "What is printed"
    assert {"Images", "Features", "Score", "Decision", "Machine", "Result"} <= set(headings)
    assert OTHER not in headings or len(shown.split(f"{OTHER}:")[1].splitlines()) < 12
    words = " ".join(shown.split())
    assert "[a number in (0, 1); default: 0.01]" in words
    assert "--no-cache" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_old_spellings_go_on_working_and_warn():
    done = CliRunner().invoke(cli, ["log", "nowhere"])
    assert "Warning: log is called resume-logging now" in done.stderr
    assert "resume-logging" in CliRunner().invoke(cli, ["--help"]).output
    given = ["models:/dfm-x/3", "--to", "staging"]
    assert parsed("promote", given)["alias"] == "staging"
    done = CliRunner().invoke(cli, ["promote", *given])
    assert "Warning: promote --to is called --alias now" in done.stderr
    assert PromoteOptions.parse({"model": "m", "version": "1", "to": "staging"}).alias == "staging"
    done = CliRunner().invoke(cli, ["export", "nowhere", "a.onnx"])
    assert "Warning: export MODEL FILE is called export MODEL --output FILE" in done.stderr


def test_one_value_by_position_and_by_name():
    for words in (["describe"], ["describe", "a", "--model", "b"]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2, done.output
    assert "Missing argument 'MODEL'" in CliRunner().invoke(cli, ["describe"]).output
    assert "MODEL is a and --model is b: give one" in done.output


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
        (["--url", "http://h:1", "--engine", "spark", "--output", "a/", "p"], "--engine needs"),
        (["--url", "http://h:1", "--part-by", "a", "p"], "--part-by needs --model"),
        (["--url", "http://h:1", "--output", "a/", "p"], "--output ending in / needs --model"),
        (["--model", "m", "--engine", "spark", "p"], "output=none is not a folder"),
        (["--model", "m", "--output", "a.txt", "one"], r"output='a\.txt' is not valid"),
        (["--model", "m", "--fpr", "2", "one"], r"fpr='2' is not valid"),
    ],
)
def test_score_refuses_what_does_not_go_together(arguments, words):
    done = CliRunner().invoke(cli, ["score", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert re.search(words, str(done.exception))
