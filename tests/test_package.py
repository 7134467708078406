"""What a user of the package relies on: examples in docstrings, types, documented names."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import dfm_mlflow

from .house import _lacks_of, public

PACKAGE = Path(dfm_mlflow.__file__).parent
MODULES = [
    name
    for _, name, is_package in pkgutil.walk_packages([str(PACKAGE)], "dfm_mlflow.")
    if not is_package and name != "dfm_mlflow.__main__"
]
SOURCES = {name: PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in MODULES}
WITH_EXAMPLES = [name for name, path in SOURCES.items() if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples():
    assert "dfm_mlflow.core.dfm" in WITH_EXAMPLES


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


# -- docstrings: `make lint` asks, and here it is seen that it does -------------------------------


def test_public_is_what_the_package_the_client_and_the_page_name():
    for name in (
        ("dfm_mlflow.jobs.train", "train"),
        ("dfm_mlflow.jobs.train", "TrainResult"),  # what it returns
        ("dfm_mlflow.client", "score"),
        ("dfm_mlflow.registry.promote", "promote"),
        ("dfm_mlflow.core.dfm", "DFM"),
        ("dfm_mlflow.config.train", "Options"),
    ):
        assert name in public()
    assert ("dfm_mlflow.core.crossfit", "HeldOut") not in public()


UNDOCUMENTED = '''
def one(x: np.ndarray, how: str) -> None:
    """Do something with `x`, as `how` says."""
    raise FitError("never")

def two(a: int, b: int, c: int) -> None:
    """Do something with `a`, `b` and `c`.

    Parameters
    ----------
    a, b : int

    Returns
    -------
    c : int
    """
    try:
        raise FitError("here")
    except DfmError:
        raise DataError("there") from None

@dataclass
class Three:
    """A class.

    Attributes
    ----------
    known : int
    """
    known: int
    unknown: int

    @property
    def four(self) -> int:
        return 4
'''


def test_what_is_not_documented_is_found():
    assert list(_lacks_of(ast.parse(UNDOCUMENTED).body)) == [
        "one does not document how",
        "one does not document x",
        "one does not say that it raises FitError",
        "two does not document c",
        "two does not say that it raises DataError",
        "Three does not document unknown",
        "Three.four has no first line that is a sentence",
    ]
