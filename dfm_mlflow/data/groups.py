"""Which pictures belong together, since they show the same thing."""

import re
from collections.abc import Sequence

from dfm_mlflow.data.item import Item
from dfm_mlflow.data.listed import Finder, nothing_found, read_list
from dfm_mlflow.errors import DataError

# What burst captures and copies are often called by, as an expression that gives one name a group.
_COMMON_PATTERNS = (
    r"([^/\\]+)[_-][^/\\_-]*$",  # part17_2.png
    r"([^/\\]+?)(?:[ _-]*\(\d+\)|[ _-]*copy[ _-]*\d*)?\.\w+$",  # part17 (2).png, part17-copy.png
    r"([^/\\]+)[/\\][^/\\]+$",  # part17/2.png
)


def groups_of(pattern: str, items: list[Item]) -> list[str] | None:
    """Give the group of each picture, from a manifest, a list, or an expression on its path."""
    if pattern == "none" and not any(item.group for item in items):
        return None
    if is_list(pattern):
        return _listed_groups(pattern, items)
    groups, n_found = [], 0
    for item in items:
        if item.group or pattern == "none":  # a manifest knows better than the path
            groups.append(item.group or str(item.path))
            continue
        match = re.search(pattern, str(item.path))
        # the first group of the expression if it has one, else the whole match
        found = match.group(match.re.groups and 1) if match else None
        n_found += found is not None
        groups.append(found or str(item.path))
    if pattern != "none" and not n_found and not any(item.group for item in items):
        raise DataError(
            f"group_by={pattern!r} matches no training picture, such as {items[0].path}: correct "
            "the expression or give none."
        )
    return groups


def is_list(pattern: str) -> bool:
    """Whether ``group_by`` names a file rather than an expression.

    `pattern` is the option ``group_by``.
    """
    return pattern.lower().endswith(".csv")


def _listed_groups(address: str, items: list[Item]) -> list[str]:
    lines = read_list(address, "group_by")
    if lines and "group" not in lines[0].cells:
        raise DataError(
            f"group_by={address} lacks the column group: its first line must name path and group."
        )
    finder, groups = Finder(items), {str(i.path): i.group or str(i.path) for i in items}
    n_found = 0
    for line in lines:
        found = finder.find(line)
        if not found and finder.ambiguous(line):
            raise nothing_found("group_by", address, line, finder)
        n_found += bool(found)  # it may name test pictures, or those that are left out, too
        groups |= {str(item.path): line.cells["group"] for item in found if line.cells["group"]}
    if not n_found:
        raise DataError(
            f"group_by={address} names no training picture, such as {items[0].path}: correct its "
            "paths or give none."
        )
    return [groups[str(item.path)] for item in items]


def expression_for(paths: Sequence[str], groups: Sequence[int]) -> str | None:
    """Find an expression for ``group_by`` that holds these groups together, and little else."""
    n_groups = len(set(groups))
    for pattern in _COMMON_PATTERNS:
        matches = [re.search(pattern, path) for path in paths]
        names = [m.group(1) if m else path for m, path in zip(matches, paths, strict=True)]
        held: dict[int, str] = {}
        together = all(held.setdefault(g, n) == n for g, n in zip(groups, names, strict=True))
        if together and len(set(names)) >= 0.8 * n_groups and len(set(names)) < len(paths):
            return pattern
    return None
