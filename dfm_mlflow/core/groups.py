"""Which rows belong together, from what they hold and never from their names or order."""

import hashlib
from collections.abc import Sequence

import numpy as np


def group_rows(
    keys: Sequence[str], groups: Sequence[str] | None = None, *, seed: int = 42
) -> np.ndarray:
    """Number the groups of rows: rows with equal keys, or of one named group, belong together.

    A row may belong to two groups, as the copy of a row that another group holds: those are one
    then. Groups are numbered by a hash of the seed and the keys of their rows, so that other names,
    another order or copies of the same rows change no number.

    Gives (n,) int: number of each row's group, from 0.
    """
    labels = _joined([keys] if groups is None else [keys, groups])
    members: list[list[str]] = [[] for _ in range(int(labels.max(initial=-1)) + 1)]
    for key, label in zip(keys, labels, strict=True):
        members[label].append(key)
    hashes = [_hash(seed, sorted(set(part))) for part in members]  # copies say nothing new
    place = np.argsort(sorted(range(len(members)), key=hashes.__getitem__))
    numbers: np.ndarray = place[labels]
    return numbers


def _joined(names: Sequence[Sequence[str]]) -> np.ndarray:
    """Number connected rows: those that share any name, directly or through others."""
    parent = list(range(len(names[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in names:
        first: dict[str, int] = {}
        for i, name in enumerate(column):
            parent[root(i)] = root(first.setdefault(name, i))
    roots = [root(i) for i in range(len(parent))]
    return np.unique(np.array(roots, dtype=int), return_inverse=True)[1].reshape(-1)


def _hash(seed: int, keys: Sequence[str]) -> bytes:
    return hashlib.sha256("\n".join([str(seed), *keys]).encode()).digest()
