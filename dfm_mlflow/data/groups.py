"""Which pictures belong together, since they show the same thing."""

import re

from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError


def groups_of(pattern: str, items: list[Item]) -> list[str] | None:
    """Give the group of each picture, from a manifest or by a regular expression on its path.

    Parameters
    ----------
    pattern : str
        Regular expression, or ``none``.
    items : list of Item

    Returns
    -------
    list of str or None
        None where nothing groups them; the path of a picture that belongs to no group.

    Raises
    ------
    DataError
        If the expression matches no picture.
    """
    if pattern == "none" and not any(item.group for item in items):
        return None
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
