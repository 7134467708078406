"""Which rows and labels a ``DFM`` takes, and how it refuses others."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from dfm_mlflow.core.dfm_classes import FittedClass
from dfm_mlflow.errors import FitError

NOT_FINITE = "X holds NaN or infinite values: leave those rows out."


def checked_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Check rows as scikit-learn does; a tensor to score stays on its device.

    Shapes: X (n, D), or torch tensor; gives (n, D) float32 or float64.
    """
    if is_torch_array(X):
        if not reset:
            return _checked_tensor(X, estimator.n_features_in_)
        X = X.cpu().numpy()
    try:
        X = validate_data(
            estimator, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
        )
    except ValueError as error:
        lines = str(error).splitlines()
        raise FitError(" ".join(dict.fromkeys((lines[0], lines[-1])))) from None
    if not np.isfinite(X).all():
        raise FitError(NOT_FINITE)
    return X


def _checked_tensor(X: Any, n_features: int) -> Any:
    if X.ndim != 2 or X.shape[1] != n_features:
        raise FitError(
            f"X has shape {tuple(X.shape)}, but DFM is expecting {n_features} features as input."
        )
    xp = array_namespace(X)
    if not xp.isdtype(X.dtype, "real floating"):
        X = xp.astype(X, xp.float64)
    if not xp.all(xp.isfinite(X)):
        raise FitError(NOT_FINITE)
    return X


def labels_of(X: Sequence[Any] | np.ndarray, y: Any) -> np.ndarray:
    """Label of each row; 0 where there are none.

    Shapes: X (n, D); y (n,), or None; gives (n,).
    """
    if y is None:
        return np.zeros(len(X), dtype=int)
    labels = np.asarray(y)
    if labels.shape != (len(X),):
        raise FitError(
            f"y has shape {labels.shape} and X has {len(X)} rows: give one label for each row."
        )
    return labels


def rows_of_classes(X: np.ndarray, y: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels that are there, sorted, and the numbers of the rows of each.

    Shapes: X (n, D); y (n,), or None.
    """
    classes, codes = np.unique(labels_of(X, y), return_inverse=True)
    return classes, [np.flatnonzero(codes == code) for code in range(len(classes))]


def naming(label: Any, alone: bool, fit: Callable[..., FittedClass]) -> FittedClass:
    """Fit one class; where there are several, an error names it."""
    try:
        return fit()
    except FitError as error:
        if alone:
            raise
        raise FitError(f"The class {label} cannot be fitted. {error}") from None
