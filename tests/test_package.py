"""What a user of the package relies on: examples in docstrings, types, documented names."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import dfm_mlflow
from dfm_mlflow import client
from dfm_mlflow.core.dfm import DFM

PACKAGE = Path(dfm_mlflow.__file__).parent
MODULES = [
    name
    for _, name, is_package in pkgutil.walk_packages([str(PACKAGE)], "dfm_mlflow.")
    if not is_package and name != "dfm_mlflow.__main__"
]
WITH_EXAMPLES = [
    name
    for name in MODULES
    if ">>>" in (PACKAGE.parent / f"{name.replace('.', '/')}.py").read_text()
]
PUBLIC = [getattr(dfm_mlflow, name) for name in dfm_mlflow.__all__]
CALLABLES = [
    f
    for f in (*PUBLIC, client.score, *(m for _, m in inspect.getmembers(DFM)))
    if inspect.isfunction(f)
    and f.__module__.startswith("dfm_mlflow")
    and not f.__name__.startswith("_")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples():
    assert "dfm_mlflow.core.dfm" in WITH_EXAMPLES


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("function", CALLABLES, ids=lambda f: f.__qualname__)
def test_public_functions_document_their_parameters(function):
    text = inspect.getdoc(function) or ""
    given = [p for p in inspect.signature(function).parameters if p != "self"]
    if len(given) > 1:
        section = text.partition("Parameters\n----------")[2]
        for name in given:
            assert name in section, f"{function.__qualname__} does not document {name}"
    assert text.strip().split("\n")[0].endswith((".", ":"))
