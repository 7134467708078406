"""What `make lint` asks of the sources beyond ruff and mypy: ``python -m tests.house``.

Public names have whole docstrings, and every module of the package has tests where one looks for
them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import dfm_mlflow
from dfm_mlflow import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, TESTS = ROOT / "dfm_mlflow", ROOT / "tests"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.startswith("_")
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
DEFINED = {  # the module that defines a class or function of this name, at its top
    (name, node.name): node
    for name, tree in TREES.items()
    for node in tree.body
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
}

# -- docstrings ------------------------------------------------------------------------------------
#
# What the docstring of a public name must say:
#
# - a first line that is a sentence;
# - each parameter, in a Parameters section. Up to two may stand in the text instead, `name` in
#   backticks, where annotations say the rest: no Any, and for arrays the text says "shape";
# - each error of the package that its own body raises, in a Raises section, unless a `try` around
#   it catches everything. Those of a constructor stand in the docstring of the class;
# - each field, or parameter of the constructor, in the Attributes or Parameters of the class. One
#   that is declared by `option(...)` has its help text there.
#
# All others have a line or two, and the shapes of their arrays. Ruff sees that there is one.

CLASSES = {key: node for key, node in DEFINED.items() if isinstance(node, ast.ClassDef)}
ERRORS = {
    name
    for (_, name), node in CLASSES.items()
    if any(re.search("(Error|Exception)$", ast.unparse(base)) for base in node.bases)
}
# Public, too: what stands in results, and what MLflow finds by an entry point.
ALSO = {
    ("dfm_mlflow.data.item", "Item"),
    ("dfm_mlflow.scores.verdict", "Verdict"),
    ("dfm_mlflow.mlflow_plugin.dataset", "from_image_folder"),
}


def public() -> set[tuple[str, str]]:
    """Give (module, name) of what a user imports, as the package and docs/python.md say.

    What those return, and classes that they inherit from, are public, too.
    """
    names = {(f"dfm_mlflow.{m}", n) for n, m in dfm_mlflow._EXPORTS.items() if m != "config"}
    names |= {(m, n) for m, n in DEFINED if m in ("dfm_mlflow.client", "dfm_mlflow.errors")}
    options = {(m, n) for m, n in DEFINED if m.startswith("dfm_mlflow.config.")}
    names |= {(m, n) for m, n in options if n in config.__all__}
    page = re.findall(r"`(dfm_mlflow\.[\w.]+)\.(\w+)\(", (ROOT / "docs/python.md").read_text())
    names = (names | set(page) | ALSO) & set(DEFINED)
    while True:
        known = {word for name in names for word in _named(DEFINED[name])}
        more = {key for key in CLASSES if key[1] in known}
        if more <= names:
            return names
        names |= more


def _named(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Names in what a function returns, and in what a class inherits from."""
    parts = [node.returns] if isinstance(node, ast.FunctionDef) else node.bases
    return {word for part in parts if part for word in re.findall(r"\w+", ast.unparse(part))}


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


def documented() -> Iterator[str]:
    """Say what the docstrings of public names lack."""
    for module, name in sorted(public()):
        for lack in _lacks_of([DEFINED[module, name]]):
            yield f"{module}: {lack}"


# -- tests mirror the package ----------------------------------------------------------------------
#
# Modules without a test file of their name, and the file that tests them with others.
TESTED_BY = {
    "artifact.files": "artifact/test_cost.py",
    "artifact.record": "artifact/test_save_load.py",
    "artifact.statistics": "artifact/test_save_load.py",
    "console.options": "test_cli.py",
    "console.verb": "test_cli.py",
    "columns": "detector/test_decision.py",
    "config.combination": "config/test_train.py",
    "config.presets": "config/test_train.py",
    "data.folder": "data/test_layouts.py",
    "data.exclude": "jobs/test_training_look.py",
    "data.item": "jobs/test_train.py",
    "data.roles": "data/test_layouts.py",
    "jobs.fit": "jobs/test_train.py",
    "report.look": "jobs/test_training_look.py",
    "scores.copies": "jobs/test_training_look.py",
    "scores.tables": "jobs/test_training_look.py",
    "scores.training": "jobs/test_training_look.py",
    "tuning.drawn": "jobs/test_training_look.py",
    "detector.fit": "detector/test_anomaly_detector.py",
    "detector.grid": "detector/test_class_model.py",
    "images.foreign": "images/test_decode_table.py",
    "images.inflate": "images/test_fast.py",
    "images.limits": "images/test_decode_table.py",
    "images.tiff": "images/test_decode_table.py",
    "mlflow_plugin.golden": "registry/test_golden.py",
    "serving.inputs": "serving/test_pyfunc.py",
    "serving.refusal": "serving/test_pyfunc.py",
    "serving.monitor.memory": "serving/monitor/test_follow.py",
    "serving.monitor.messages": "serving/monitor/test_monitor.py",
    "serving.monitor.shared": "serving/monitor/test_metrics.py",
    "spark.blocks": "spark/test_class_passes.py",
    "spark.layer_passes": "spark/test_class_passes.py",
}


def mirrored() -> Iterator[str]:
    """Say which modules have no file of tests, or one that does not name them."""
    for name, path in SOURCES.items():
        short = name.removeprefix("dfm_mlflow.")
        own = TESTS / path.relative_to(PACKAGE).with_name(f"test_{path.name}")
        if short not in TESTED_BY:
            if not own.is_file():
                yield f"{short} has no {own.relative_to(ROOT)}"
        elif own.exists():
            yield f"{short} has a file of its own and stands in TESTED_BY"
        elif not re.search(rf"\b{path.stem}\b", (TESTS / TESTED_BY[short]).read_text()):
            yield f"{TESTED_BY[short]} has no {short}"
    for unknown in sorted(set(TESTED_BY) - {n.removeprefix("dfm_mlflow.") for n in SOURCES}):
        yield f"TESTED_BY names {unknown}, which is no module"


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    found = [*documented(), *mirrored()]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
