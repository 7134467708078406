"""How rows are scored by a fitted ``DFM``: the methods that scikit-learn and its users call."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from dfm_mlflow.core.dfm_classes import FittedClass, Scores, as_like, score_rows
from dfm_mlflow.core.dfm_recipe import Recipe
from dfm_mlflow.core.subspace import Subspace


class DFMScoring:
    """Scores of rows under fitted classes.

    A row belongs to the class under whose density over the full space it is likeliest, whatever
    the score is, and is scored under that class.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the fitted classes.
    """

    classes_: np.ndarray
    _recipe: Recipe

    def _fitted(self) -> list[FittedClass]:
        raise NotImplementedError

    def _checked(self, X: Any, *, reset: bool) -> Any:
        raise NotImplementedError

    def _scores(self, X: Any) -> Scores:
        classes = self._fitted()
        return score_rows(classes, self._recipe, self._checked(X, reset=False))

    @property
    def subspaces_(self) -> list[Subspace]:
        """Subspace of each class."""
        return [fitted.subspace for fitted in self._fitted()]

    @property
    def offset_(self) -> float | np.ndarray:
        """Score below which a row is an outlier; of each class where there are several."""
        offsets = [fitted.offset for fitted in self._fitted()]
        return offsets[0] if len(offsets) == 1 else np.array(offsets)

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
        scores = self._scores(X)
        return scores.fre, scores.nll

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
        scores = self._scores(X)
        return scores.of_winner(scores.fre)

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
        scores = self._scores(X)
        return scores.of_winner(scores.nll)

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
        winner = self._scores(X).winner
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
            Under the class that the row fits best.

        Raises
        ------
        FitError
            As :meth:`class_scores`.
        """
        return -self._scores(X).anomaly

    def decision_function(self, X: Any) -> Any:
        """:meth:`score_samples` less ``offset_`` of the row's class: negative for outliers.

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
        scores = self._scores(X)
        offsets = as_like([model.offset for model in self._fitted()], scores.anomaly)
        return -scores.anomaly - array_namespace(offsets).take(offsets, scores.winner)

    def predict(self, X: Any) -> Any:
        """Tell good rows from outliers.

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
