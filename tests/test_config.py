import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.config import (
    PRESETS,
    EvaluateOptions,
    Options,
    PromoteOptions,
    ScoreOptions,
    SweepOptions,
)
from dfm_mlflow.errors import ConfigError

ROOT = Path(__file__).parent.parent


def project():
    return yaml.safe_load((ROOT / "MLproject").read_text())


@pytest.mark.parametrize(
    ("entry", "model"),
    [
        ("main", Options),
        ("tune", Options),
        ("sweep", SweepOptions),
        ("evaluate", EvaluateOptions),
        ("promote", PromoteOptions),
        ("score", ScoreOptions),
    ],
)
def test_mlproject_has_the_options_with_their_defaults(entry, model):
    point = project()["entry_points"][entry]
    fields = model.model_fields
    assert list(point["parameters"]) == list(fields)
    defaults = {k: v["default"] for k, v in point["parameters"].items() if "default" in v}
    required = {
        name: "1" if name != "output" else "scores/"
        for name, field in fields.items()
        if field.is_required()
    }
    assert set(defaults) == set(fields) - set(required)
    assert model.parse(required | defaults) == model.parse(required)
    passed = re.findall(r"--([\w-]+) \{(\w+)\}", point["command"])
    assert passed == [(name.replace("_", "-"), name) for name in fields]


def test_no_default_is_an_empty_string():
    for model in (Options, SweepOptions, EvaluateOptions, PromoteOptions):
        assert all(str(f.default) for f in model.model_fields.values())


def test_a_grid_becomes_every_combination_of_its_values():
    given = {"categories": "a,b", "grid": "layers=layer2|layer2,layer3;pca_level=0.9,0.97;"}
    options = SweepOptions.parse(given)
    assert options.category_names == ("a", "b")
    assert options.configurations() == [
        {"layers": layers, "pca_level": level}
        for layers in ("layer2", "layer2,layer3")
        for level in ("0.9", "0.97")
    ]
    child = options.options("b", options.configurations()[2])
    assert child == Options.parse({"category": "b", "layers": "layer2,layer3", "pca_level": "0.9"})
    plain = SweepOptions.parse({"category": "c"})
    assert (plain.category_names, plain.configurations()) == (("c",), [{}])


def test_command_line_has_every_option_in_both_spellings():
    text = CliRunner().invoke(cli, ["train", "--help"]).output
    for name, field in Options.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"--{name}" in text
        assert field.description


def test_conda_environment_asks_for_what_the_package_needs():
    text = (ROOT / "pyproject.toml").read_text()
    sample = re.search(r"sample = \[(.*?)\]", text, re.S).group(1)
    needed = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.S).group(1)
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == sorted(re.findall(r'"(.+?)"', needed + sample))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_nothing_to_chance(preset):
    resolved = Options.parse({"preset": preset}).resolve()
    left = {k for k, v in resolved.model_dump().items() if v == "auto"}
    assert left == {"data", "device", "precision", "registered_model"}
    assert resolved.resolve() == resolved
    assert (resolved.score, resolved.pca_level) == ("fre", "0.97")


def test_what_is_given_wins_over_the_preset():
    resolved = Options.parse({"preset": "anomalib", "pooling": "1", "aggregate": "max"}).resolve()
    assert (resolved.pooling, resolved.aggregate) == ("1", "max")
    wide = Options.parse({"preset": "anomalib", "backbone": "wide_resnet50_2"}).resolve()
    assert wide.pooling == "4"
    assert Options.parse({"score": "nll"}).resolve().aggregate == "sum"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("pca_level", "1.5", r"pca_level='1.5' .* in \(0, 1\]"),
        ("pca_level", "0", "in "),
        ("fpr", "0", "fpr='0'"),
        ("fpr", "often", "number in"),
        ("aggregate", "top:0", "top:q"),
        ("image_size", "big", "HxW"),
        ("category", "../secret", "category"),
        ("category", "a,,b", "category"),
        ("seed", "-1", "whole number"),
        ("weights", "model.bin", "safetensors"),
        ("colour", "red", "no option 'colour'"),
    ],
)
def test_bad_values_get_one_sentence(option, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Options.parse({option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "nll", "aggregate": "max"}, "needs a map"),
        ({"group_by": "("}, "regular expression"),
        ({"image_size": "15"}, "outside 16 to 4096"),
        ({"image_size": "200", "tile": "256"}, "does not cut"),
        ({"image_size": "520", "tile": "256"}, "multiples of 32"),
        ({"retest": "0.005"}, "not above fpr"),
    ],
)
def test_what_is_not_there_is_refused_not_ignored(options, words):
    with pytest.raises(ConfigError, match=words):
        Options.parse(options).resolve()


def test_model_name_follows_the_categories():
    assert Options.parse({"category": "a,b"}).model_name == "dfm-a-b"
    assert Options.parse({"registered_model": "none"}).model_name is None
    assert Options.parse({"image_size": "128x256"}).size == (128, 256)


def test_errors_are_one_sentence_on_stderr():
    done = subprocess.run(
        [sys.executable, "-m", "dfm_mlflow", "train", "--fpr", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: fpr='2' is not valid")
    assert "Traceback" not in done.stderr


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import dfm_mlflow; "
        "t = time.perf_counter() - t; "
        "print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)), t < 0.3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
