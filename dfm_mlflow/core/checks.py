"""What every solver refuses, in the same words."""

import numpy as np

from dfm_mlflow.errors import FitError

NOT_FINITE = "The features hold NaN or infinite values: check the weights, or use precision=fp32."
TOO_LARGE = "The features hold values of 1e150 or more, whose squares overflow: scale them down."
EQUAL_ROWS = "All rows of features are equal: give pictures that differ."
NO_ROWS = "The source gave no rows: give at least 2."


def too_few(n: int) -> str:
    """Say that `n` rows are too few to fit to."""
    return f"There is {n} sample of features and at least 2 samples are needed."


def check_n_components(n_components: float) -> None:
    """Refuse an `n_components` that is no share of the variance and no positive whole number."""
    if isinstance(n_components, int | np.integer) and not isinstance(n_components, bool):
        valid = n_components >= 1
    else:
        valid = isinstance(n_components, float | np.floating) and 0 < n_components <= 1
    if not valid:
        raise FitError(
            f"n_components={n_components!r} is out of range: give a share of the variance in "
            "(0, 1] as a float, or a whole number of at least 1."
        )
