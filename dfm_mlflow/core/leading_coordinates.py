"""Leading coordinates of rows that no direction was fitted to, in the frame of the final model.

The first directions of a model lean towards the rows they were fitted to: where n < D these spread
several times as far along them as new rows do. So the coordinates of a calibration, among which new
rows are to be ranked, are taken along directions found without their fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.core.solvers import row_blocks
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.errors import FitError

MOST_LEADING = 10  # coordinates of a layer that drift is looked for in
# A leading direction of the final model is made of this many times as many of a fold. With no more
# than the leading ones it turns from fold to fold where variances are near each other; with all of
# hundreds it leans towards the very rows that are held out.
SPAN = 3
MOST_SPANNING = SPAN * MOST_LEADING


def n_leading(subspace: Subspace) -> int:
    """How many coordinates of a `subspace` drift is looked for in: 10, fewer for few pictures.

    The directions of later ones are hardly more than chance where there are not 20 pictures for
    each.
    """
    return min(MOST_LEADING, max(1, subspace.n_samples // 20), subspace.n_components)


def leading_directions(fold: Subspace, model: Subspace) -> np.ndarray:
    """Leading directions of a model, as the rows of all other folds show them.

    Each is the projection of the model's direction on the first ``3 l`` of the fold's subspace,
    scaled to length 1: a held-out row has no part in these, and order and sign are the model's. The
    leading coordinates of a held-out row are ``(x - model.mean) @ directions``. The mean is the
    model's, as of a new row: it shifts all rows alike.

    Gives (D, l) float64.
    """
    kept = np.asarray(fold.basis[:, : SPAN * n_leading(model)], dtype=np.float64)
    directions: np.ndarray = kept @ _scaled(kept.T @ _leading_basis(model))
    return directions


def _leading_basis(model: Subspace) -> np.ndarray:
    basis: np.ndarray = np.asarray(model.basis[:, : n_leading(model)], dtype=np.float64)
    return basis


def _scaled(overlap: np.ndarray) -> np.ndarray:
    """Columns scaled to length 1, but for those that are 0."""
    length = np.linalg.norm(overlap, axis=0)
    scaled: np.ndarray = overlap / np.where(length > 0, length, 1)
    return scaled


def leading_by_fold(
    x: np.ndarray, parts: Sequence[tuple[np.ndarray, Subspace]], model: Subspace
) -> np.ndarray:
    """Leading coordinates of held-out rows, from the subspace of each fold.

    Shapes: x (n, D); gives (n, l) float64.
    """
    found = np.empty((len(x), n_leading(model)))
    for out, fold in parts:
        found[out] = (x[out] - model.mean) @ leading_directions(fold, model)
    return found


@dataclass(frozen=True, eq=False)
class GramPart:
    """A fold whose subspace is known by weights of rows."""

    out: np.ndarray  # (m,) int: rows of the fold
    rest: np.ndarray  # (r,) int: all others
    # (r, q): First directions of the subspace of `rest`: weighted sums of its rows.
    weights: np.ndarray
    # (m, q): Of the rows of the fold, centred at the mean of all, along these directions.
    coordinates: np.ndarray


def leading_by_gram(x: np.ndarray, parts: Sequence[GramPart], model: Subspace) -> np.ndarray:
    """Leading coordinates of held-out rows as :func:`leading_by_fold` gives them.

    Shapes: x (n, D); gives (n, l) float64.
    """
    basis = _leading_basis(model)
    inside = np.concatenate([(block - model.mean) @ basis for block in row_blocks(x)])
    found, q = np.empty(inside.shape), SPAN * n_leading(model)
    for part in parts:
        overlap = part.weights[:, :q].T @ inside[part.rest]
        found[part.out] = part.coordinates[:, :q] @ _scaled(overlap)
    return found


def not_kept(model: Subspace) -> np.ndarray:
    """Refuse leading coordinates where only residuals were held out, whatever the `model`."""
    raise FitError("Leading coordinates were not kept: take the held-out rows of crossfit().")


def calibration_ranks(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of new leading coordinates among those of the calibration, in (0, 1).

    known: (n, l): Held-out coordinates of the calibration, each column ascending.

    Shapes: values (m, l); gives (m, MOST_LEADING) float64.
    """
    ranks = np.full((len(values), MOST_LEADING), np.nan)
    for j, column in enumerate(known.T):
        above = len(known) - np.searchsorted(column, values[:, j], side="left")
        ranks[:, j] = (0.5 + above) / (len(known) + 1)
    return ranks


def rank_correlation(coordinates: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman's correlation of the leading coordinates of a calibration, of all layers together.

    coordinates: (n, l): Held-out coordinates in each layer, the rows in the same order in all.

    Gives (L, L) float32, with L the coordinates of all layers.
    """
    rows = np.concatenate(coordinates, axis=1)
    if len(rows) < 2:  # one picture has no ranks
        return np.eye(rows.shape[1], dtype=np.float32)
    ranks = np.argsort(np.argsort(rows, axis=0), axis=0)
    correlation = np.atleast_2d(np.corrcoef(ranks, rowvar=False))
    both: np.ndarray = ((correlation + correlation.T) / 2).astype(np.float32)
    return both
