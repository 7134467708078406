"""The MLproject and its environment offer what the options and the package say."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from dfm_mlflow.cli import cli
from dfm_mlflow.config import (
    EvaluateOptions,
    Options,
    PromoteOptions,
    RecalibrateOptions,
    ScoreOptions,
    SweepOptions,
    UpdateOptions,
)

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
}


def required_of(model):
    given = {"output": "scores/"}
    return {n: given.get(n, "1") for n, f in model.model_fields.items() if f.is_required()}


def test_every_entry_point_has_its_options():
    assert set(ENTRY_POINTS) == set(OPTIONS)


@pytest.mark.parametrize("entry", OPTIONS)
def test_an_entry_point_has_the_options_with_their_defaults(entry):
    point, model = ENTRY_POINTS[entry], OPTIONS[entry]
    assert list(point["parameters"]) == list(model.model_fields)
    defaults = {k: v["default"] for k, v in point["parameters"].items() if "default" in v}
    required = required_of(model)
    assert set(defaults) == set(model.model_fields) - set(required)
    assert model.parse(required | defaults) == model.parse(required)


@pytest.mark.parametrize("entry", OPTIONS)
def test_its_command_is_one_of_the_command_line_and_passes_every_parameter_on(entry):
    point, fields = ENTRY_POINTS[entry], list(OPTIONS[entry].model_fields)
    assert re.findall(r"\{(\w+)\}", point["command"]) == fields
    options = re.findall(r"--([\w-]+) \{(\w+)\}", point["command"])
    assert all(option == name.replace("_", "-") for option, name in options)
    given = {k: v.get("default") for k, v in point["parameters"].items()}
    given |= required_of(OPTIONS[entry])
    words = [w.format(**given) for w in shlex.split(point["command"])]
    assert words[:3] == ["python", "-m", "dfm_mlflow"]
    parent = click.Context(cli, **cli.context_settings)
    verb = cli.get_command(parent, words[3])
    context = verb.make_context(words[3], words[4:], parent=parent)
    passed = {k: v for k, v in context.params.items() if k in fields}
    if entry == "score":  # pictures may stand without the option, too
        passed["images"] = context.params["found"]
    assert {k: str(v) for k, v in passed.items()} == {k: str(v) for k, v in given.items()}


@pytest.mark.parametrize("model", dict.fromkeys(OPTIONS.values()))
def test_no_default_is_an_empty_string(model):
    assert all(str(f.default) for f in model.model_fields.values())  # MLflow would drop it


def test_conda_environment_asks_for_what_the_package_needs():
    text = (ROOT / "pyproject.toml").read_text()
    sample = re.search(r"sample = \[(.*?)\]", text, re.S).group(1)
    needed = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.S).group(1)
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == sorted(re.findall(r'"(.+?)"', needed + sample))
