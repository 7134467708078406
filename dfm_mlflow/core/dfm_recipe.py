"""What a ``DFM`` was asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfm_mlflow.core.checks import check_n_components
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.errors import FitError

VALUES = {
    "score_type": ("nll", "fre"),
    "likelihood": ("ppca", "subspace"),
    "noise": ("auto", "held-out", "gcv", "in-sample"),
}


@dataclass(frozen=True)
class Recipe:
    """Checked parameters of a :class:`~dfm_mlflow.core.dfm.DFM`, as it was fitted with them."""

    n_components: float
    score_type: str
    likelihood: str
    noise: str
    contamination: float
    n_folds: int | None
    solver: str
    random_state: int

    def __post_init__(self) -> None:
        check_n_components(self.n_components)
        for name, valid in VALUES.items():
            if getattr(self, name) not in valid:
                raise FitError(
                    f"{name}={getattr(self, name)!r} is not known: give {' or '.join(valid)}."
                )
        if not 0 < self.contamination <= 0.5:
            raise FitError(
                f"contamination={self.contamination} is out of range: give a share in (0, 0.5]."
            )
        for name, least in (("n_folds", 2), ("random_state", 0)):
            value = getattr(self, name)
            if name == "n_folds" and value is None:
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise FitError(
                    f"{name}={value!r} is out of range: give a whole number of at least {least}."
                )
        share = isinstance(self.n_components, float | np.floating)
        if self.score_type == "fre" and share and self.n_components == 1:
            raise FitError(
                f"n_components={self.n_components} keeps all of the variance and leaves "
                "score_type='fre' nothing to reconstruct: give a share below 1, such as 0.97, or "
                "score_type='nll'."
            )

    def differing(self, parameters: Mapping[str, Any]) -> str:
        """Say which values are not those of `parameters`, by name; nothing where none differs."""
        mine = vars(self)
        return ", ".join(
            f"{name}={mine[name]!r}" for name, value in parameters.items() if value != mine[name]
        )

    def check_residual_dimensions(self, subspace: Subspace) -> None:
        """Refuse FRE where a `subspace` keeps every direction."""
        if self.score_type == "fre" and subspace.n_components == subspace.n_features:
            raise FitError(
                f"All directions of {subspace.n_features} feature(s) are kept and leave "
                "score_type='fre' nothing to reconstruct: give a smaller n_components, or "
                "score_type='nll'."
            )
