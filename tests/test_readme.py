"""What the README shows exists: commands, options, files, anchors."""

import ast
import re
import shlex

import click
import pytest
import yaml

from dfm_mlflow.cli import cli

from . import readme
from .readme import ROOT

TEXT = (ROOT / "README.md").read_text()
DOCS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / n for n in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
]
ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def test_commands_are_found():
    assert len(readme.commands()) > 14
    assert any(c.startswith("printf") and "curl" in c for c in readme.commands())


@pytest.mark.parametrize("command", readme.commands())
def test_a_command_is_one_that_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[:2] == ["mlflow", "run"]:
        given = [words[i + 1].partition("=")[0] for i, w in enumerate(words) if w == "-P"]
        name = words[words.index("-e") + 1] if "-e" in words else "main"
        assert set(given) <= set(ENTRY_POINTS[name]["parameters"])
    elif words[0] == "dfm-mlflow":
        parent = click.Context(cli, info_name="dfm-mlflow", **cli.context_settings)
        verb = cli.get_command(parent, words[1])
        verb.make_context(words[1], words[2:], parent=parent, resilient_parsing=False)
    else:
        assert words[0] in ("mlflow", "pip", "printf")


def test_it_is_short_and_starts_offline():
    assert readme.words() <= 1500
    first = readme.blocks()[0].splitlines()
    assert [line.split()[0] for line in first] == ["pip", "dfm-mlflow", "dfm-mlflow"]


PYTHON = [(path, block) for path in DOCS for block in readme.blocks("python", path)]


@pytest.mark.parametrize(("path", "block"), PYTHON, ids=lambda v: getattr(v, "name", None))
def test_python_is_python(path, block):
    compile(block, path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


SHELL = [
    (path.name, line)
    for path in DOCS
    for block in readme.blocks("sh", path)
    for line in map(readme.without_comment, block.splitlines())
    if line.startswith("dfm-mlflow ") and "--help" not in line and path.name != "README.md"
]


@pytest.mark.parametrize(("name", "command"), SHELL)
def test_a_command_of_a_page_is_one_that_exists(name, command):
    test_a_command_is_one_that_exists(command)


def test_every_page_is_in_the_index_and_in_the_site():
    index = (ROOT / "docs/index.md").read_text()
    site = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "index.md":
            assert f"]({page.name})" in index, page.name
        assert f" {page.name}" in site, page.name


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles
            }, target


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_scripts_that_are_named_are_there(path):
    for script in re.findall(r"python ((?:benchmarks|examples|docs)/[\w/]+\.py)", path.read_text()):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m (tests\.[\w.]+)", path.read_text()):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
