"""The class-conditional estimator, in scikit-learn's words."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from dfm_mlflow.core.dfm_classes import FittedClass
from dfm_mlflow.core.dfm_fit import Batches, fit_classes, fit_in_passes, fit_sums
from dfm_mlflow.core.dfm_recipe import Recipe
from dfm_mlflow.core.dfm_rows import checked_rows, rows_of_classes
from dfm_mlflow.core.dfm_scoring import DFMScoring
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.errors import FitError


class DFM(DFMScoring, OutlierMixin, BaseEstimator):
    """Deep Feature Modeling: a PCA subspace and a Gaussian density for each class of good rows.

    A row belongs to the class under whose density over the full space it is likeliest, and is
    scored under that class. Two scores are known: the feature reconstruction error (FRE; Ndiour et
    al., arXiv 2203.10422) and the negative log-likelihood (NLL; Ahuja et al., arXiv 1909.11786).

    Parameters are taken over by :meth:`fit`, :meth:`fit_batches`, :meth:`from_moments` and the
    first :meth:`partial_fit`; those that are set later count from the next fit.

    Parameters
    ----------
    n_components : float or int, default=0.97
        Share of the variance in (0, 1] that the smallest sufficient number of directions keeps, or
        that number. A share of 1.0, or as many directions as features, leaves nothing to
        reconstruct and is refused with ``score_type="fre"``.
    score_type : {"nll", "fre"}, default="nll"
        What :meth:`score_samples` returns the opposite of. Where there are several classes, FREs
        are divided by the FRE that good rows of the class show, or one offset could not serve
        classes of different scale; NLLs are left as they are.
    likelihood : {"ppca", "subspace"}, default="ppca"
        Density of the NLL: probabilistic PCA over the full space (Tipping & Bishop 1999), or the
        Gaussian of the coordinates in the subspace alone, as published. The latter is not
        comparable between classes of different dimension and collapses where n is near k. The
        class of a row is chosen by the former, always.
    noise : {"auto", "held-out", "gcv", "in-sample"}, default="auto"
        Where the variance outside the subspace is taken from. "held-out" measures it by
        cross-fitting, within a few per cent of what new rows show; it needs all rows at once and is
        for :meth:`fit` only. "gcv" corrects in-sample residuals for the directions that were
        fitted, ``FRE / (1 - (k + 1) / n)^2`` (generalised cross-validation: Golub, Heath & Wahba,
        Technometrics 21, 1979), and never to more than all of the variance; it needs no rows, and
        is 0.5 to 1.7 times what new rows show where n is not many times k. "in-sample" is
        scikit-learn's way, several times too small where rows are fewer than features. "auto" is
        "held-out" in :meth:`fit`, and "gcv" in :meth:`partial_fit`, :meth:`from_moments` and
        :meth:`fit_batches`.
    contamination : float, default=0.01
        Share of good rows that :meth:`predict` is to call outliers, in (0, 0.5]; see ``offset_``.
        No n rows can promise less than ``1 / (n + 1)``, and where the share is below that, it is
        what they are taken for.
    n_folds : int, optional
        Of the cross-fitting behind offset and noise in :meth:`fit`: 20 by default, 10 above 1,500
        rows, and 5 where both rows and features are above 4,096. Fewer take less time, and are more
        cautious: held-out rows are scored by models of ``n (1 - 1 / n_folds)`` rows.
    solver : {"auto", "gram", "covariance", "randomized"}, default="auto"
        See :mod:`dfm_mlflow.core.solvers`.
    random_state : int, default=42
        Seed of the folds, and of the first block of the randomised solver and of
        :meth:`fit_batches`; a whole number of at least 0. Equal rows and an equal seed give an
        equal model, up to rounding, in whatever order the rows come: there is nothing random that
        a seed would not fix, so neither None nor a generator is taken.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; ``[0]`` where no labels were given.
    subspaces_ : list of Subspace
        One for each class, in float64.
    offset_ : float, or ndarray of shape (n_classes,)
        :meth:`decision_function` is :meth:`score_samples` less this; one for each class where there
        are several, since each is to have the same share of outliers. After :meth:`fit` it is the
        ``contamination * (n + 1)``-th smallest score of rows that were held out of the model they
        are scored by, so that new good rows fall below it in about that share of cases, or a little
        less. From ``100 * D**1.5`` rows on, where training rows score as new ones do, it is that
        quantile of their own scores, and exactly that share of them are called outliers, as
        scikit-learn has it. After :meth:`partial_fit`, :meth:`from_moments` and
        :meth:`fit_batches` no rows are at hand and it is the quantile of the fitted density, which
        is right for Gaussian rows that are many times more than the directions.
    n_features_in_ : int
        Dimension D of a row.
    moments_ : list of Moments
        After :meth:`partial_fit` and :meth:`from_moments` only.

    Examples
    --------
    >>> import numpy as np
    >>> from dfm_mlflow.core.dfm import DFM
    >>> rng = np.random.default_rng(0)
    >>> structure = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> good = structure + 0.1 * rng.normal(size=(200, 20))
    >>> dfm = DFM(n_components=0.95).fit(good)
    >>> dfm.subspaces_[0].n_components
    3
    >>> dfm.predict(np.vstack([good[:1], good[:1] + 2.0])).tolist()
    [1, -1]
    """

    def __init__(
        self,
        n_components: float = 0.97,
        *,
        score_type: str = "nll",
        likelihood: str = "ppca",
        noise: str = "auto",
        contamination: float = 0.01,
        n_folds: int | None = None,
        solver: str = "auto",
        random_state: int = 42,
    ):
        self.n_components = n_components
        self.score_type = score_type
        self.likelihood = likelihood
        self.noise = noise
        self.contamination = contamination
        self.n_folds = n_folds
        self.solver = solver
        self.random_state = random_state

    # -- fitting -----------------------------------------------------------------------------------

    def fit(self, X: np.ndarray, y: Any = None) -> "DFM":
        """Fit one subspace to the rows of each class, and hold each row out once.

        Parameters
        ----------
        X : array-like of shape (n, D), float32 or float64
            Good rows; not changed.
        y : array-like of shape (n,), optional
            Class of each row.

        Returns
        -------
        DFM

        Raises
        ------
        FitError
            For values that are not finite, a `y` of another length, a class of a single row, or
            rows without variance; a class is named.
        """
        recipe = self._asked()
        X = self._checked(X, reset=True)
        labels, classes = fit_classes(X, y, recipe)
        self._set_classes(recipe, labels, classes)
        return self

    def partial_fit(self, X: np.ndarray, y: Any = None) -> "DFM":
        """Add rows; memory does not grow with their number.

        The subspaces are computed when they are next asked for, with the parameters of the first
        call, and with noise and offset from formulas instead of held-out rows. D may be at most
        4,096: see :meth:`fit_batches` beyond it. After :meth:`fit`, which keeps no moments, it
        starts afresh and warns.

        Parameters
        ----------
        X : array-like of shape (n, D)
        y : array-like of shape (n,), optional

        Returns
        -------
        DFM

        Raises
        ------
        FitError
            For values that are not finite, a `y` of another length, rows of another length than
            those before or of more than 4,096 features, and ``noise="held-out"``.
        """
        first = not hasattr(self, "moments_")
        recipe = self._asked(rows=False) if first else self._kept()
        if first and hasattr(self, "classes_"):
            warnings.warn(
                "fit() keeps no moments that further rows could be added to: partial_fit() starts "
                "afresh and forgets the rows of fit().",
                stacklevel=2,
            )
        X = self._checked(X, reset=first)
        labels, rows = rows_of_classes(X, y)
        known = {} if first else dict(zip(self.classes_.tolist(), self.moments_, strict=True))
        for label, mine in zip(labels.tolist(), rows, strict=True):
            new = Moments.of(X[mine])
            known[label] = known[label].merge(new) if label in known else new
        self._set_moments(recipe, known)
        return self

    @classmethod
    def from_moments(cls, moments: Moments | Mapping[Any, Moments], **parameters: Any) -> "DFM":
        """Build a fitted estimator from merged moments.

        Noise and offset come from formulas instead of held-out rows, which moments do not hold.

        Parameters
        ----------
        moments : Moments, or dict of label to Moments
        **parameters
            Of the constructor; not ``noise="held-out"``.

        Returns
        -------
        DFM

        Raises
        ------
        FitError
            If there is no class, classes differ in their features, or a parameter is out of range.
        """
        dfm = cls(**parameters)
        recipe = dfm._asked(rows=False)
        if isinstance(moments, Moments):
            moments = {0: moments}
        widths = {m.n_features for m in moments.values()}
        if len(widths) != 1:
            raise FitError(
                f"The moments of {len(moments)} classes have {sorted(widths)} features: give those "
                "of at least one class, all of the same features."
            )
        dfm._set_moments(recipe, dict(moments))
        dfm.n_features_in_ = widths.pop()
        return dfm

    def fit_batches(self, source: Batches) -> "DFM":
        """Fit in several passes over batches of rows, for D above 4,096 and any number of rows.

        Noise and offset come from formulas: to hold rows out would take a fit for each fold.

        Parameters
        ----------
        source : callable
            Each call gives an iterable over the same batches ``(X, y)``; `y` may be None.

        Returns
        -------
        DFM

        Raises
        ------
        FitError
            As :meth:`fit`, and for ``noise="held-out"``.
        """
        recipe = self._asked(rows=False)
        labels, classes = fit_in_passes(source, recipe)
        self._set_classes(recipe, labels, classes)
        self.n_features_in_ = classes[0].subspace.n_features
        return self

    # -- inside ------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def _asked(self, *, rows: bool = True) -> Recipe:
        """Parameters as they are now."""
        recipe = Recipe(**self.get_params())
        if not rows and recipe.noise == "held-out":
            raise FitError(
                "noise='held-out' needs all rows at once: call fit(), or give noise='gcv'."
            )
        return recipe

    def _kept(self) -> Recipe:
        """Parameters of the first call of :meth:`partial_fit`."""
        if said := self._recipe.differing(self.get_params()):
            warnings.warn(
                f"{said} of the first partial_fit() hold for all rows that are added to it, and "
                "what was set since counts from the next fit().",
                stacklevel=3,
            )
        return self._recipe

    def _set_classes(self, recipe: Recipe, labels: np.ndarray, classes: list[FittedClass]) -> None:
        """Take over what was fitted, all at once: a fit that failed leaves the last one whole."""
        self._recipe, self.classes_, self._of_classes = recipe, labels, classes
        self.__dict__.pop("moments_", None)

    def _set_moments(self, recipe: Recipe, moments: dict[Any, Moments]) -> None:
        labels = sorted(moments)
        self._recipe, self.classes_ = recipe, np.array(labels)
        self.moments_ = [moments[label] for label in labels]
        self.__dict__.pop("_of_classes", None)

    def _fitted(self) -> list[FittedClass]:
        check_is_fitted(self)
        if "_of_classes" not in self.__dict__:
            self._of_classes = fit_sums(self.classes_, self.moments_, self._recipe)
        return self._of_classes

    def _checked(self, X: Any, *, reset: bool) -> Any:
        return checked_rows(self, X, reset=reset)
