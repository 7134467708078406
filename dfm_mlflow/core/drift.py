"""Whether a batch of new pictures looks like the good ones of the calibration.

P-values show what the subspace does not explain. A lamp that fades moves pictures within it, as
good ones vary in brightness, too; that shows in the leading coordinates, where a whole day of
pictures sits on one side. Both are compared with the calibration by ranks alone, so that nothing is
assumed of the distributions, and the calibration counts as the sample of n that it is:

- p-values by the one-sided two-sample Kolmogorov-Smirnov distance, "too small": held-out scores of
  the calibration are a little higher than those of new pictures, and smaller scores are no harm;
- each leading coordinate by the Wilcoxon-Mann-Whitney test of its place among the held-out ones of
  the calibration, two-sided.
"""

import math
from collections.abc import Iterator, Sequence
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

    Parameters
    ----------
    fold : Subspace
        Of all rows but those of the fold, NumPy arrays.
    model : Subspace
        Of all rows, NumPy arrays.

    Returns
    -------
    ndarray of shape (D, l), float64
        With l of :func:`n_leading` of the model; 0 where the fold has nothing of a direction.
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

    Parameters
    ----------
    x : ndarray of shape (n, D)
    parts : sequence of (ndarray of int, Subspace)
        Rows of a fold, and the subspace of all others.
    model : Subspace
        Of all rows.

    Returns
    -------
    ndarray of shape (n, l), float64
    """
    found = np.empty((len(x), n_leading(model)))
    for out, fold in parts:
        found[out] = (x[out] - model.mean) @ leading_directions(fold, model)
    return found


@dataclass(frozen=True, eq=False)
class GramPart:
    """A fold whose subspace is known by weights of rows.

    Attributes
    ----------
    out : ndarray of shape (m,), int
        Rows of the fold.
    rest : ndarray of shape (r,), int
        All others.
    weights : ndarray of shape (r, q)
        First directions of the subspace of `rest`: weighted sums of its rows.
    coordinates : ndarray of shape (m, q)
        Of the rows of the fold, centred at the mean of all, along these directions.
    """

    out: np.ndarray
    rest: np.ndarray
    weights: np.ndarray
    coordinates: np.ndarray


def leading_by_gram(x: np.ndarray, parts: Sequence[GramPart], model: Subspace) -> np.ndarray:
    """Leading coordinates of held-out rows as :func:`leading_by_fold` gives them.

    Parameters
    ----------
    x : ndarray of shape (n, D)
    parts : sequence of GramPart
        One for each fold.
    model : Subspace
        Of all rows.

    Returns
    -------
    ndarray of shape (n, l), float64
    """
    basis = _leading_basis(model)
    inside = np.concatenate([(block - model.mean) @ basis for block in row_blocks(x)])
    found, q = np.empty(inside.shape), SPAN * n_leading(model)
    for part in parts:
        overlap = part.weights[:, :q].T @ inside[part.rest]
        found[part.out] = part.coordinates[:, :q] @ _scaled(overlap)
    return found


def not_kept(model: Subspace) -> np.ndarray:
    """Refuse leading coordinates where only residuals were held out, whatever the `model`.

    Raises
    ------
    FitError
        Always.
    """
    raise FitError("Leading coordinates were not kept: take the held-out rows of crossfit().")


def places_among(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Place of new leading coordinates among those of the calibration.

    Parameters
    ----------
    known : ndarray of shape (n, l)
        Held-out coordinates of the calibration, each column ascending.
    values : ndarray of shape (m, l)
        Coordinates of new pictures under the final model.

    Returns
    -------
    ndarray of shape (m, MOST_LEADING), float64
        ``(1 + #{known >= value}) / (n + 1)``, uniform where nothing changed; NaN where a class has
        fewer coordinates.
    """
    places = np.full((len(values), MOST_LEADING), np.nan)
    for j, column in enumerate(known.T):
        above = len(known) - np.searchsorted(column, values[:, j], side="left")
        places[:, j] = (1 + above) / (len(known) + 1)
    return places


@dataclass(frozen=True)
class Drift:
    """How far new images are from the good ones of the calibration.

    Attributes
    ----------
    flagged : float
        Share of the images that are flagged; good ones keep the promised rate.
    statistic : float
        How far the share of p-values up to some u exceeds u at most, in [0, 1]: the one-sided
        Kolmogorov-Smirnov distance, the largest of all categories.
    appearance : float
        How far apart the leading coordinates are: the largest ``|2 P(new > calibration) - 1|``, in
        [0, 1].
    significance : float
        Probability of differences as unlikely as the most unlikely of these, for good images.
    """

    flagged: float
    statistic: float
    appearance: float
    significance: float


def measure_drift(
    p_values: np.ndarray,
    flagged: np.ndarray,
    places: np.ndarray,
    n_calibration: int | np.ndarray,
    categories: np.ndarray | None = None,
) -> Drift:
    """Compare new, unlabelled images with the good ones of the calibration.

    Images are taken to be independent of each other: several of one part (bursts) count as more
    evidence than they are. What only widens a coordinate's spread is not looked for.

    Parameters
    ----------
    p_values : ndarray of shape (m,)
        Of each image under its category.
    flagged : ndarray of shape (m,), bool
    places : ndarray of shape (m, l)
        Of :func:`places_among` in each layer, under its category; NaN where there is none.
    n_calibration : int or ndarray of shape (m,), int
        Good images of the calibration that each is ranked among (groups, where p-values count
        them): the fewer, the larger a difference may be by chance.
    categories : ndarray of shape (m,), optional
        Category of each image; one for all by default. Each is compared with its own calibration.

    Returns
    -------
    Drift
    """
    sizes = np.broadcast_to(n_calibration, p_values.shape)
    labels = np.zeros(len(p_values), int) if categories is None else np.asarray(categories)
    found = [
        part
        for label in np.unique(labels)
        for part in _compare(p_values, places, sizes, np.flatnonzero(labels == label))
    ]
    return Drift(
        flagged=float(np.mean(flagged)),
        statistic=max((size for of_scores, size, _ in found if of_scores), default=0.0),
        appearance=max((size for of_scores, size, _ in found if not of_scores), default=0.0),
        significance=min(1.0, len(found) * min(p for _, _, p in found)),  # Bonferroni
    )


def _compare(
    p_values: np.ndarray, places: np.ndarray, sizes: np.ndarray, mine: np.ndarray
) -> Iterator[tuple[bool, float, float]]:
    """Whether scores are compared, difference and significance, for the images of a category."""
    n = int(sizes[mine[0]])
    yield True, *_too_small(p_values[mine], n)
    for column in places[mine].T:
        known = column[~np.isnan(column)]
        if len(known):
            yield False, *_moved(known, n)


def _too_small(p_values: np.ndarray, n: int) -> tuple[float, float]:
    """One-sided Kolmogorov-Smirnov distance of m p-values among n, and its significance.

    The bound is Smirnov's limit ``exp(-2 d^2 m n / (m + n))``; the exact probability is smaller.
    """
    m = len(p_values)
    share = np.arange(1, m + 1) / m
    in_calibration = (np.sort(p_values) * (n + 1) - 1) / n
    distance = max(0.0, float((share - in_calibration).max()))
    return distance, math.exp(-2 * distance**2 * m * n / (m + n))


def _moved(places: np.ndarray, n: int) -> tuple[float, float]:
    """Wilcoxon-Mann-Whitney effect and two-sided significance of m places among n."""
    m = len(places)
    above = float(places.mean()) * (n + 1) - 1  # of the n, in the mean
    z = (above - n / 2) / math.sqrt(n * (n + m + 1) / (12 * m))
    return abs(2 * above / n - 1), math.erfc(abs(z) / math.sqrt(2))
