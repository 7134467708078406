"""The MLproject and its environment offer what the options and the package say."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from dfm_mlflow.cli import cli
from dfm_mlflow.config import (
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
    UpdateOptions,
)
from dfm_mlflow.console.options import given_as

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
OPTIONS = {
    "main": Options,
    "tune": Options,
    "sweep": SweepOptions,
    "evaluate": EvaluateOptions,
    "promote": PromoteOptions,
    "recalibrate": RecalibrateOptions,
    "score": ScoreOptions,
    "update": UpdateOptions,
    "describe": DescribeOptions,
    "compare": CompareOptions,
    "rollback": RollbackOptions,
    "export": ExportOptions,
}
# What an option that must be given is given here, where "1" would not do.
GIVEN = {"runs": "one,two", ("export", "output"): "a.onnx"}
# What makes the other options of a verb agree.
BESIDE = {"promote": {"version": "1", "alias": "staging"}}


def required_of(entry):
    needed = [n for n, f in OPTIONS[entry].model_fields.items() if f.is_required()]
    return {n: GIVEN.get((entry, n), GIVEN.get(n, "1")) for n in needed}


def test_every_entry_point_has_its_options():
    assert set(ENTRY_POINTS) == set(OPTIONS)


@pytest.mark.parametrize("entry", OPTIONS)
def test_an_entry_point_has_the_options_with_their_defaults(entry):
    point, model = ENTRY_POINTS[entry], OPTIONS[entry]
    assert list(point["parameters"]) == list(model.model_fields)
    defaults = {k: v["default"] for k, v in point["parameters"].items() if "default" in v}
    required, beside = required_of(entry), BESIDE.get(entry, {})
    assert set(defaults) == set(model.model_fields) - set(required)
    assert model.parse(required | defaults | beside) == model.parse(required | beside)


@pytest.mark.parametrize("entry", OPTIONS)
def test_its_command_is_one_of_the_command_line_and_passes_every_parameter_on(entry):
    point, fields = ENTRY_POINTS[entry], list(OPTIONS[entry].model_fields)
    assert re.findall(r"\{(\w+)\}", point["command"]) == fields
    options = re.findall(r"--([\w-]+) \{(\w+)\}", point["command"])
    assert all(option == name.replace("_", "-") for option, name in options)
    given = {k: v.get("default") for k, v in point["parameters"].items()}
    given |= required_of(entry)
    words = [w.format(**given) for w in shlex.split(point["command"])]
    assert words[:3] == ["python", "-m", "dfm_mlflow"]
    parent = click.Context(cli, **cli.context_settings)
    verb = cli.get_command(parent, words[3])
    params = verb.make_context(words[3], words[4:], parent=parent).params
    for name, value in given.items():  # by position or by name
        found = params.get(given_as(name)) or params[name]
        found = found[0] if isinstance(found, tuple) else found
        assert str(found).lower() == str(value).lower(), name


@pytest.mark.parametrize("model", dict.fromkeys(OPTIONS.values()))
def test_no_default_is_an_empty_string(model):
    assert all(str(f.default) for f in model.model_fields.values())  # MLflow would drop it


def test_conda_environment_asks_for_what_the_package_needs():
    text = (ROOT / "pyproject.toml").read_text()
    sample = re.search(r"sample = \[(.*?)\]", text, re.S).group(1)
    needed = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.S).group(1)
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == sorted(re.findall(r'"(.+?)"', needed + sample))
