"""What a user of the package relies on: examples in docstrings, types, documented names."""

import ast
import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfm_mlflow

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


# -- docstrings ------------------------------------------------------------------------------------
#
# What every public function, class, method and property of a public module must say:
#
# - a first line that is a sentence;
# - each parameter, in a Parameters section. Up to two may stand in the text instead, `name` in
#   backticks, where annotations say the rest: no Any, and for arrays the text says "shape";
# - each error of the package that its own body raises, in a Raises section, unless a `try` around
#   it catches everything. Those of a constructor stand in the docstring of the class;
# - each field, or parameter of the constructor, in the Attributes or Parameters of the class. One
#   that is declared by `option(...)` has its help text there.
#
# Commands of the command line are exempt: their docstrings are the text of --help.

TREES = {
    name: ast.parse(path.read_text())
    for name, path in SOURCES.items()
    if not any(part.startswith("_") for part in name.split("."))
}
ERRORS = {
    node.name
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.ClassDef)
    and any(re.search("(Error|Exception)$", ast.unparse(base)) for base in node.bases)
}


def _entries(text: str, *sections: str) -> set[str]:
    """Names that numpydoc sections document; `a, b : int` are two."""
    names: set[str] = set()
    for title in sections:
        found = re.search(rf"^{title}\n-+\n(.*?)(?=\n\w+\n---|\Z)", text, re.M | re.S)
        for line in re.findall(r"^\S.*", found[1] if found else "", re.M):
            names |= {name.strip(" *") for name in line.split(" : ")[0].split(",")}
    return names


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    a = function.args
    given = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [p for p in given if p and p.arg not in ("self", "cls") and not p.arg.startswith("_")]


def _stands_in_text(parameter: ast.arg, text: str) -> bool:
    kind = ast.unparse(parameter.annotation) if parameter.annotation else "Any"
    is_array = re.search("ndarray|Tensor", kind) is not None
    return (
        re.search(rf"(?<!`)`{parameter.arg}`(?!`)", text) is not None
        and kind != "Any"
        and ("shape" in text or not is_array)
    )


def _raised(node: ast.AST) -> set[str]:
    """Errors of the package that a body raises."""
    if isinstance(node, ast.Raise) and node.exc:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return {ast.unparse(error)} & ERRORS
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Try):
        caught = {ast.unparse(handler.type) for handler in node.handlers if handler.type}
        if caught & {"Exception", "DfmError"}:
            children = [*node.handlers, *node.orelse, *node.finalbody]
    return set().union(*map(_raised, children))


def _lacks(name: str, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """What is missing in the docstring of one public name."""
    text = ast.get_docstring(node) or ""
    if not text.split("\n")[0].endswith((".", ":")):
        yield f"{name} has no first line that is a sentence"
    raising, must = [node], []
    if isinstance(node, ast.FunctionDef):
        prose = re.split(r"^\w+\n---", text, flags=re.M)[0]
        parameters = _parameters(node)
        if len(parameters) > 2 or not all(_stands_in_text(p, prose) for p in parameters):
            must = [p.arg for p in parameters]
    else:
        raising = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        must = [p.arg for init in raising for p in _parameters(init)]
        for field in (n for n in node.body if isinstance(n, ast.AnnAssign)):
            declared = ast.unparse(field.target)
            made_by = isinstance(field.value, ast.Call) and ast.unparse(field.value.func)
            if made_by != "option" and not declared.startswith("_"):
                must.append(declared)
    for missing in sorted(set(must) - _entries(text, "Parameters", "Attributes")):
        yield f"{name} does not document {missing}"
    raised = set().union(*map(_raised, raising))
    for missing in sorted(raised - _entries(text, "Raises")):
        yield f"{name} does not say that it raises {missing}"


def _lacks_of(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(ast.unparse(d).startswith(("cli.", "click.")) for d in node.decorator_list):
            continue
        yield from _lacks(f"{within}{node.name}", node)
        if isinstance(node, ast.ClassDef):
            yield from _lacks_of(node.body, f"{node.name}.")


@pytest.mark.parametrize("name", TREES)
def test_public_names_are_documented(name):
    assert list(_lacks_of(TREES[name].body)) == []


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
