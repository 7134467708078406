"""The fit of the classes of a ``DFM``, with their rows at hand or without them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from scipy.stats import chi2

from dfm_mlflow.core.checks import NO_ROWS
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.dfm_classes import FittedClass, score_rows
from dfm_mlflow.core.dfm_recipe import Recipe
from dfm_mlflow.core.dfm_rows import labels_of, naming, rows_of_classes
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.solvers import LARGE, fit_moments, fit_subspace, row_blocks
from dfm_mlflow.core.streaming import fit_stream
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.errors import FitError

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]]

# Training rows score lower than new ones by about D / n of a score whose spread is its root of D:
# from 100 D^1.5 rows on the share of outliers among new rows is nearly that among training rows
# (benchmarks/estimator.py: 0.011 of 5 features where 0.01 was asked for, 0.016 of 2).
MANY_ROWS = 100
FOLDS_LARGE = 5  # where each fold takes passes over the rows


def fit_classes(X: np.ndarray, y: Any, recipe: Recipe) -> tuple[np.ndarray, list[FittedClass]]:
    """Fit each class to its rows.

    Shapes: X (n, D) float32 or float64; y (n,), or None; gives labels (n_classes,): sorted.
    """
    labels, rows = rows_of_classes(X, y)
    alone = len(labels) == 1
    return labels, [
        naming(label, alone, lambda mine=mine: fit_rows(X[mine], recipe, alone))
        for label, mine in zip(labels, rows, strict=True)
    ]


def fit_sums(labels: np.ndarray, moments: Sequence[Moments], recipe: Recipe) -> list[FittedClass]:
    """Fit each class to the moments of its rows.

    Shapes: labels (n_classes,).
    """
    alone, level = len(labels) == 1, recipe.n_components
    return [
        naming(label, alone, lambda m=m: without_rows(fit_moments(m, level), recipe, alone))
        for label, m in zip(labels, moments, strict=True)
    ]


def fit_in_passes(source: Batches, recipe: Recipe) -> tuple[np.ndarray, list[FittedClass]]:
    """Fit each class in several passes over batches of rows.

    source: Each call gives an iterable over the same batches ``(X, y)``; `y` may be None.

    Gives labels (n_classes,): sorted.
    """
    found = [labels_of(X, y) for X, y in source()]
    if not found:
        raise FitError(NO_ROWS)
    labels = np.unique(np.concatenate(found))
    alone, level, seed = len(labels) == 1, recipe.n_components, recipe.random_state

    def fit_class(label: Any) -> FittedClass:
        def rows() -> Iterable[np.ndarray]:
            return (X[mine] for X, y in source() if (mine := labels_of(X, y) == label).any())

        return without_rows(fit_stream(rows, level, seed=seed), recipe, alone)

    return labels, [naming(label, alone, lambda label=label: fit_class(label)) for label in labels]


def fit_rows(x: np.ndarray, recipe: Recipe, alone: bool) -> FittedClass:
    """Fit one class to its rows, each of which is held out once for noise and offset.

    Shapes: x (n, D) float32 or float64.
    """
    subspace = fit_subspace(x, recipe.n_components, solver=recipe.solver, seed=recipe.random_state)
    recipe.check_residual_dimensions(subspace)
    # Rows are known by what they hold: their order does not matter, and equal ones, which would
    # know each other, are held out together.
    rows = [blake2b(row, digest_size=16).hexdigest() for row in np.ascontiguousarray(x)]
    n_folds = recipe.n_folds or (FOLDS_LARGE if min(x.shape) > LARGE else None)
    folds = assign_folds(len(x), n_folds, groups=rows, seed=recipe.random_state)
    held_out = crossfit(x, folds, recipe.n_components)
    if recipe.noise in ("auto", "held-out"):
        subspace = subspace.with_noise(held_out.noise_variance(subspace))
    else:
        subspace = _with_noise(subspace, recipe)
    normaliser = _normaliser(subspace, recipe, alone)
    if recipe.score_type == "fre":
        scores = held_out.fre / normaliser
    elif recipe.likelihood == "ppca":
        scores = held_out.nll(subspace)
    else:
        scores = subspace.subspace_nll_from(held_out.mahalanobis)
    model = FittedClass(subspace, normaliser, -_limit(scores, recipe.contamination))
    if len(x) < MANY_ROWS * x.shape[1] ** 1.5:
        return model
    own = np.concatenate([score_rows([model], recipe, block).anomaly for block in row_blocks(x)])
    return replace(model, offset=-float(np.quantile(own, 1 - recipe.contamination)))


def without_rows(subspace: Subspace, recipe: Recipe, alone: bool) -> FittedClass:
    """Complete a class whose rows are not at hand: what they would show comes from formulas.

    The noise is that of generalised cross-validation (Golub, Heath & Wahba, Technometrics 21,
    1979). The offset is a quantile of the fitted density: under probabilistic PCA twice the NLL
    less its constant is chi-square with D degrees of freedom, and FRE over the noise variance one
    with D - k.
    """
    recipe.check_residual_dimensions(subspace)
    s = _with_noise(subspace, recipe)
    normaliser, share = _normaliser(s, recipe, alone), 1 - recipe.contamination
    if recipe.score_type == "fre":
        limit = s.noise_variance * chi2.ppf(share, s.n_features - s.n_components) / normaliser
    elif recipe.likelihood == "ppca":
        limit = s.nll_from(chi2.ppf(share, s.n_features), 0.0)
    else:
        limit = s.subspace_nll_from(chi2.ppf(share, s.n_components))
    return FittedClass(s, normaliser, -float(limit))


def _with_noise(subspace: Subspace, recipe: Recipe) -> Subspace:
    """Correct the in-sample noise variance, where no rows are at hand to hold out."""
    n, k, rest = (
        subspace.n_samples,
        subspace.n_components,
        subspace.n_features - subspace.n_components,
    )
    if recipe.noise == "in-sample" or not rest:
        return subspace
    noise = subspace.noise_variance * (n - 1) / n * (n / max(1, n - k - 1)) ** 2
    if n - k - 1 < 2:
        # All directions of the rows are kept and no residual is left to correct. The smallest
        # of them holds little but noise: that of D / (n - 1) directions of the space.
        noise = max(noise, float(subspace.variances[-1]) * (n - 1) / rest)
    # Where k is near n the correction explodes. New rows vary by as much as these in all, and
    # outside of the subspace by no more than that.
    total = float(subspace.variances.sum()) + subspace.noise_variance * rest
    return subspace.with_noise(min(noise, total * (1 + 1 / n) / rest))


def _normaliser(subspace: Subspace, recipe: Recipe, alone: bool) -> float:
    if alone or recipe.score_type != "fre":
        return 1.0
    return subspace.noise_variance * max(1, subspace.n_features - subspace.n_components)


def _limit(scores: np.ndarray, share: float) -> float:
    """Anomaly score of held-out rows that a new one exceeds in at most this share of cases.

    The (n + 1) share largest, or the largest of all where that is less than one.
    """
    rank = max(1, math.floor(share * (len(scores) + 1)))
    return float(np.sort(scores)[-rank])
