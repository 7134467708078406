"""Held-out rows, and changed copies of them, at many shares of the variance in one go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.core.crossfit import ONE_GROUP, HeldOut
from dfm_mlflow.core.gram_rows import RowsByGram, for_each_fold
from dfm_mlflow.core.solvers import check_features, row_blocks
from dfm_mlflow.core.subspace import squared_norm
from dfm_mlflow.errors import FitError


@dataclass(frozen=True, eq=False)
class HeldOutLevel:
    """Rows left out of a fold, and others that go with it, under one share of the variance."""

    rows: HeldOut  # of the n rows that were fitted
    others: HeldOut  # of the m further rows
    n_components: float  # mean dimension of the subspaces


def crossfit_with(
    x: np.ndarray,
    folds: np.ndarray,
    others: np.ndarray,
    their_folds: np.ndarray,
    levels: Sequence[float],
) -> Iterator[tuple[float, HeldOutLevel]]:
    """Hold every row out once, and score further rows by the subspace of one fold, at many levels.

    One Gram matrix and one decomposition a fold serve all levels.

    Shapes: x (n, D) float32 or float64; folds (n,) int; others (m, D); their_folds (m,) int.
    """
    check_features(x)
    if len(np.unique(folds)) < 2:
        raise FitError(ONE_GROUP)
    mean = x.mean(axis=0, dtype=np.float64)
    x, others = ((part - mean).astype(part.dtype, copy=False) for part in (x, others))
    gram = (x @ x.T).astype(np.float64, copy=False)
    across = (others @ x.T).astype(np.float64, copy=False)

    def without(fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, RowsByGram]:
        out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        rows = RowsByGram(gram[np.ix_(rest, rest)], x.shape[1])
        return out, np.flatnonzero(their_folds == fold), rest, rows

    parts = for_each_fold(without, folds)
    for level in levels:
        both = [_Weights(len(x), len(x)), _Weights(len(others), len(x))]
        kept = []
        for out, theirs, rest, rows in parts:
            both[0].set(out, rest, rows.project(gram[np.ix_(out, rest)], level))
            both[1].set(theirs, rest, rows.project(across[np.ix_(theirs, rest)], level))
            kept.append(rows.n_components(level))
        yield level, HeldOutLevel(both[0].of(x, x), both[1].of(others, x), float(np.mean(kept)))


class _Weights:
    """What each row is compared with: a weighted sum of the rows of other folds."""

    def __init__(self, n: int, n_rows: int):
        self._weights, self._mahalanobis = np.zeros((n, n_rows)), np.zeros(n)

    def set(self, out: np.ndarray, rest: np.ndarray, found: tuple[np.ndarray, np.ndarray]) -> None:
        self._weights[np.ix_(out, rest)], self._mahalanobis[out] = found

    def of(self, rows: np.ndarray, x: np.ndarray) -> HeldOut:
        residual = rows - self._weights.astype(x.dtype) @ x
        fre = np.concatenate(
            [squared_norm(block.astype(np.float64)) for block in row_blocks(residual)]
            or [np.zeros(0)]
        )
        return HeldOut(fre, self._mahalanobis, lambda: residual)
