"""The class-conditional estimator, in scikit-learn's words."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from scipy.stats import chi2
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from dfm_mlflow.core.checks import NO_ROWS, check_n_components
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.solvers import fit_moments, fit_subspace, row_blocks
from dfm_mlflow.core.streaming import fit_stream
from dfm_mlflow.core.subspace import Subspace, squared_norm
from dfm_mlflow.errors import FitError

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]]


class DFM(OutlierMixin, BaseEstimator):
    """Deep Feature Modeling: a PCA subspace and a Gaussian density for each class of good rows.

    A row is scored under every class and its score is the best of them. Two scores are known: the
    feature reconstruction error (FRE; Ndiour et al., arXiv 2203.10422) and the negative
    log-likelihood (NLL; Ahuja et al., arXiv 1909.11786).

    Parameters
    ----------
    n_components : float or int, default=0.97
        Share of the variance in (0, 1] that the smallest sufficient number of directions keeps, or
        that number.
    score_type : {"nll", "fre"}, default="nll"
        What :meth:`score_samples` returns the opposite of. NLLs are comparable between classes as
        they are; FREs are first divided by the FRE that the class's own good rows show, since
        otherwise the class of smallest scale would always win.
    likelihood : {"ppca", "subspace"}, default="ppca"
        Density of the NLL: probabilistic PCA over the full space (Tipping & Bishop 1999), or the
        Gaussian of the coordinates in the subspace alone, as published. The latter is not
        comparable between classes of different dimension and collapses where n is near k.
    noise : {"gcv", "held-out", "in-sample"}, default="gcv"
        Where the variance outside the subspace is taken from. In-sample residuals, scikit-learn's
        way, are several times too small where rows are fewer than features. "gcv" corrects them for
        the directions that were fitted, ``FRE / (1 - (k + 1) / n)^2`` on average (generalised
        cross-validation: Golub, Heath & Wahba, Technometrics 21, 1979), needs no rows and comes
        within about a third of what new rows show; "held-out" measures them by cross-fitting and
        is for :meth:`fit` only.
    contamination : float, default=0.01
        Share of the training rows that :meth:`predict` calls outliers, in (0, 0.5].
    n_folds : int, default=5
        Of the cross-fitting behind ``noise="held-out"``.
    solver : {"auto", "gram", "covariance", "randomized"}, default="auto"
        See :mod:`dfm_mlflow.core.solvers`.
    random_state : int, default=42
        Seed of folds and of the randomised solver.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; ``[0]`` where no labels were given.
    subspaces_ : list of Subspace
        One for each class, in float64.
    offset_ : float
        :meth:`decision_function` is :meth:`score_samples` less this. After :meth:`partial_fit` and
        :meth:`from_moments` no rows are at hand and it is the quantile of the fitted density.
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
        noise: str = "gcv",
        contamination: float = 0.01,
        n_folds: int = 5,
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
        """Fit one subspace to the rows of each class.

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
        self._check_parameters()
        X = self._checked(X, reset=True)
        labels, rows = self._classes(X, y)
        subspaces = [
            _named(label, len(labels), lambda mine=mine: self._fit_class(X[mine]))
            for label, mine in zip(labels, rows, strict=True)
        ]
        self._set_subspaces(labels, subspaces)
        scores = np.concatenate([self.score_samples(block) for block in row_blocks(X)])
        self._offset = float(np.quantile(scores, self.contamination))
        return self

    def partial_fit(self, X: np.ndarray, y: Any = None) -> "DFM":
        """Add rows; memory does not grow with their number.

        The subspaces are computed when they are next asked for. D may be at most 4,096: see
        :meth:`fit_batches` beyond it. After :meth:`fit`, which keeps no moments, it starts afresh
        and warns.

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
        self._check_parameters()
        first = not hasattr(self, "moments_")
        if first and hasattr(self, "classes_"):
            warnings.warn(
                "fit() keeps no moments that further rows could be added to: partial_fit() starts "
                "afresh and forgets the rows of fit().",
                stacklevel=2,
            )
        self._check_no_rows_needed()
        X = self._checked(X, reset=first)
        labels, rows = self._classes(X, y)
        known = {} if first else dict(zip(self.classes_.tolist(), self.moments_, strict=True))
        for label, mine in zip(labels.tolist(), rows, strict=True):
            new = Moments.of(X[mine])
            known[label] = known[label].merge(new) if label in known else new
        self._set_moments(known)
        return self

    @classmethod
    def from_moments(cls, moments: Moments | Mapping[Any, Moments], **parameters: Any) -> "DFM":
        """Build a fitted estimator from merged moments.

        Parameters
        ----------
        moments : Moments, or dict of label to Moments
        **parameters
            Of the constructor; not ``noise="held-out"``, as moments hold no single rows.

        Returns
        -------
        DFM

        Raises
        ------
        FitError
            If there is no class, classes differ in their features, or a parameter is out of range.
        """
        dfm = cls(**parameters)
        dfm._check_parameters()
        dfm._check_no_rows_needed()
        if isinstance(moments, Moments):
            moments = {0: moments}
        widths = {m.n_features for m in moments.values()}
        if len(widths) != 1:
            raise FitError(
                f"The moments of {len(moments)} classes have {sorted(widths)} features: give those "
                "of at least one class, all of the same features."
            )
        dfm._set_moments(dict(moments))
        dfm.n_features_in_ = dfm.moments_[0].n_features
        return dfm

    def fit_batches(self, source: Batches) -> "DFM":
        """Fit in several passes over batches of rows, for D above 4,096 and any number of rows.

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
        self._check_parameters()
        self._check_no_rows_needed()
        found = [_labels(X, y) for X, y in source()]
        if not found:
            raise FitError(NO_ROWS)
        labels = np.unique(np.concatenate(found))

        def rows_of(label: Any) -> Callable[[], Iterable[np.ndarray]]:
            return lambda: (X[mine] for X, y in source() if (mine := _labels(X, y) == label).any())

        seed, level = self.random_state, self.n_components
        subspaces = [
            _named(
                label,
                len(labels),
                lambda label=label: self._with_noise(fit_stream(rows_of(label), level, seed=seed)),
            )
            for label in labels
        ]
        self._set_subspaces(labels, subspaces)
        self.n_features_in_ = self._subspaces[0].n_features
        self._offset = self._model_offset()
        return self

    # -- what was learned --------------------------------------------------------------------------

    @property
    def subspaces_(self) -> list[Subspace]:
        """Subspace of each class."""
        self._refresh()
        return self._subspaces

    @property
    def offset_(self) -> float:
        """Score below which a row is an outlier."""
        self._refresh()
        return self._offset

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    # -- scoring -----------------------------------------------------------------------------------

    def class_scores(self, X: Any) -> tuple[Any, Any]:
        """FRE and NLL of each row under each class.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor; the result is of its kind, and on its device.

        Returns
        -------
        fre : array of shape (n, n_classes)
        nll : array of shape (n, n_classes)
            In nats.

        Raises
        ------
        FitError
            If `X` has other than D columns, or values that are not finite.
        NotFittedError
            Of scikit-learn, before a fit.
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        columns: tuple[list[Any], list[Any]] = ([], [])
        for subspace in self.subspaces_:
            if is_torch_array(X):
                subspace = subspace.like(X)
            coordinates, residual = subspace.split(X)
            fre = squared_norm(residual)
            columns[0].append(fre)
            columns[1].append(
                subspace.nll_of(coordinates, fre)
                if self.likelihood == "ppca"
                else subspace.subspace_nll(X)
            )
        xp = array_namespace(X)
        return xp.stack(columns[0], axis=1), xp.stack(columns[1], axis=1)

    def fre(self, X: Any) -> Any:
        """Feature reconstruction error of each row under the class that it fits best.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        array of shape (n,)
            Not negative; in the square of the unit of the features.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        fre, nll = self.class_scores(X)
        return _take(fre, self._winner(fre, nll))

    def nll(self, X: Any) -> Any:
        """Negative log-likelihood of each row under the class that it fits best.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        array of shape (n,)
            In nats.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        fre, nll = self.class_scores(X)
        return _take(nll, self._winner(fre, nll))

    def predict_class(self, X: Any) -> np.ndarray:
        """Label of the class that each row fits best.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        ndarray of shape (n,)
            Of :attr:`classes_`.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        winner = self._winner(*self.class_scores(X))
        index = np.asarray(winner.cpu() if is_torch_array(winner) else winner)
        labels: np.ndarray = self.classes_[index]
        return labels

    def score_samples(self, X: Any) -> Any:
        """Opposite of the anomaly score of each row: higher is more normal.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        array of shape (n,)
            The largest over all classes.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        fre, nll = self.class_scores(X)
        return -array_namespace(fre).min(self._comparable(fre, nll), axis=1)

    def decision_function(self, X: Any) -> Any:
        """:meth:`score_samples` less ``offset_``: negative for outliers.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        array of shape (n,)

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Tell rows that look like the training rows from outliers.

        Parameters
        ----------
        X : array of shape (n, D)
            NumPy array or torch tensor.

        Returns
        -------
        array of shape (n,), int
            +1 where :meth:`decision_function` is not negative, else -1.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        decision = self.decision_function(X)
        return array_namespace(decision).where(decision >= 0, 1, -1)

    # -- inside ------------------------------------------------------------------------------------

    def _fit_class(self, x: np.ndarray) -> Subspace:
        subspace = fit_subspace(x, self.n_components, solver=self.solver, seed=self.random_state)
        if self.noise != "held-out":
            return self._with_noise(subspace)
        folds = assign_folds(len(x), self.n_folds, seed=self.random_state)
        held_out = crossfit(x, folds, self.n_components)
        return subspace.with_noise(held_out.noise_variance(subspace))

    def _with_noise(self, subspace: Subspace) -> Subspace:
        """Correct the in-sample noise variance, where no rows are at hand to hold out."""
        if self.noise == "in-sample":
            return subspace
        n, k = subspace.n_samples, subspace.n_components
        inflation = (n - 1) / n * (n / max(1, n - k - 1)) ** 2
        noise = subspace.noise_variance * inflation
        rest = subspace.n_features - k
        if n - k - 1 < 2 and rest:
            # All directions of the rows are kept and no residual is left to correct. The smallest
            # of them holds little but noise: that of D / (n - 1) directions of the space.
            noise = max(noise, float(subspace.variances[-1]) * (n - 1) / rest)
        return subspace.with_noise(noise)

    def _comparable(self, fre: Any, nll: Any) -> Any:
        if self.score_type == "nll":
            return nll
        if len(self.classes_) == 1:
            return fre
        usual = [s.noise_variance * max(1, s.n_features - s.n_components) for s in self.subspaces_]
        xp = array_namespace(fre)
        return fre / xp.asarray(usual, dtype=fre.dtype, device=getattr(fre, "device", None))

    def _winner(self, fre: Any, nll: Any) -> Any:
        return array_namespace(fre).argmin(self._comparable(fre, nll), axis=1)

    def _set_subspaces(self, labels: np.ndarray, subspaces: list[Subspace]) -> None:
        """Take over what was fitted, all at once: a fit that failed leaves the last one whole."""
        self.classes_, self._subspaces = labels, subspaces
        self.__dict__.pop("moments_", None)

    def _set_moments(self, moments: dict[Any, Moments]) -> None:
        labels = sorted(moments)
        self.classes_ = np.array(labels)
        self.moments_ = [moments[label] for label in labels]
        self.__dict__.pop("_subspaces", None)

    def _refresh(self) -> None:
        check_is_fitted(self)
        if "_subspaces" in self.__dict__:
            return
        subspaces = [
            _named(
                label,
                len(self.moments_),
                lambda m=m: self._with_noise(fit_moments(m, self.n_components)),
            )
            for label, m in zip(self.classes_, self.moments_, strict=True)
        ]
        self._subspaces = subspaces
        self._offset = self._model_offset()

    def _model_offset(self) -> float:
        """Quantile of the score under the fitted densities, weighted by their rows.

        Under probabilistic PCA twice the NLL less its constant is chi-square with D degrees of
        freedom, and FRE over the noise variance one with D - k.
        """
        share = (np.arange(1000) + 0.5) / 1000
        scores, weights = [], []
        for s in self._subspaces:
            rest = s.n_features - s.n_components
            if self.score_type == "fre":
                usual = 1.0 if len(self._subspaces) == 1 else s.noise_variance * max(1, rest)
                values = s.noise_variance * chi2.ppf(share, max(1, rest)) / usual
            elif self.likelihood == "ppca":
                values = s.nll_from(chi2.ppf(share, s.n_features), np.zeros(1))
            else:
                middle = s.subspace_nll(s.mean[None])[0]
                values = middle + chi2.ppf(share, s.n_components) / 2
            scores.append(values)
            weights.append(np.full(len(share), float(s.n_samples)))
        flat, mass = np.concatenate(scores), np.concatenate(weights)
        order = np.argsort(flat)
        reached = np.cumsum(mass[order]) / mass.sum()
        return -float(flat[order][np.searchsorted(reached, 1 - self.contamination)])

    def _check_parameters(self) -> None:
        check_n_components(self.n_components)
        for name, valid in (
            ("score_type", ("nll", "fre")),
            ("likelihood", ("ppca", "subspace")),
            ("noise", ("gcv", "held-out", "in-sample")),
        ):
            if getattr(self, name) not in valid:
                raise FitError(
                    f"{name}={getattr(self, name)!r} is not known: give {' or '.join(valid)}."
                )
        if not 0 < self.contamination <= 0.5:
            raise FitError(
                f"contamination={self.contamination} is out of range: give a share in (0, 0.5]."
            )

    def _check_no_rows_needed(self) -> None:
        if self.noise == "held-out":
            raise FitError(
                "noise='held-out' needs all rows at once: call fit(), or give noise='gcv'."
            )

    def _checked(self, X: Any, *, reset: bool) -> Any:
        if is_torch_array(X) and reset:
            X = X.cpu().numpy()
        if is_torch_array(X):  # stays on its device
            if X.ndim != 2 or X.shape[1] != self.n_features_in_:
                raise FitError(
                    f"X has shape {tuple(X.shape)}, but DFM is expecting {self.n_features_in_} "
                    "features as input."
                )
            xp = array_namespace(X)
            if not xp.isdtype(X.dtype, "real floating"):
                X = xp.astype(X, xp.float64)
            if not xp.all(xp.isfinite(X)):
                raise FitError(_NOT_FINITE)
            return X
        try:
            X = validate_data(
                self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
            )
        except ValueError as error:
            lines = str(error).splitlines()
            raise FitError(" ".join(dict.fromkeys((lines[0], lines[-1])))) from None
        if not np.isfinite(X).all():
            raise FitError(_NOT_FINITE)
        return X

    def _classes(self, X: np.ndarray, y: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        labels = _labels(X, y)
        classes, codes = np.unique(labels, return_inverse=True)
        return classes, [np.flatnonzero(codes == code) for code in range(len(classes))]


_NOT_FINITE = "X holds NaN or infinite values: leave those rows out."


def _named(label: Any, n_classes: int, fit: Callable[..., Subspace]) -> Subspace:
    """Fit one class; where there are several, an error names it."""
    try:
        return fit()
    except FitError as error:
        if n_classes == 1:
            raise
        raise FitError(f"The class {label} cannot be fitted. {error}") from None


def _labels(X: Sequence[Any] | np.ndarray, y: Any) -> np.ndarray:
    if y is None:
        return np.zeros(len(X), dtype=int)
    labels = np.asarray(y)
    if labels.shape != (len(X),):
        raise FitError(
            f"y has shape {labels.shape} and X has {len(X)} rows: give one label for each row."
        )
    return labels


def _take(table: Any, columns: Any) -> Any:
    xp = array_namespace(table)
    return xp.take_along_axis(table, columns[:, None], axis=1)[:, 0]
