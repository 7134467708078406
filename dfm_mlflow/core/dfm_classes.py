"""The fitted classes of a ``DFM``, and the scores of rows under all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device, is_torch_array

from dfm_mlflow.core.dfm_recipe import Recipe
from dfm_mlflow.core.subspace import Subspace, squared_norm


@dataclass(frozen=True, eq=False)
class FittedClass:
    """One class of good rows."""

    subspace: Subspace
    normaliser: float  # what its FREs are divided by to be comparable with those of other classes
    offset: float  # opposite of the anomaly score beyond which a row is an outlier


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n rows under each class."""

    fre: Any  # (n, n_classes)
    nll: Any  # (n, n_classes): of the likelihood that was asked for, in nats
    winner: Any  # (n,) int: class under which a row is likeliest in the full space
    anomaly: Any  # (n,): the anomaly score, under that class

    def of_winner(self, table: Any) -> Any:
        """Column of the winner.

        Shapes: table (n, n_classes); gives (n,).
        """
        return _take(table, self.winner)


def score_rows(classes: Sequence[FittedClass], recipe: Recipe, x: Any) -> Scores:
    """Score rows under every class.

    Only the density over the full space is comparable between classes: a class of small scale has
    the smaller FRE everywhere, one of large scale the smaller share of its mean FRE.

    Shapes: x (n, D).
    """
    xp = array_namespace(x)
    columns = []
    for model in classes:
        subspace = model.subspace.like(x) if is_torch_array(x) else model.subspace
        columns.append(_scores_of(subspace, recipe, x))
    fre, full, nll = (xp.stack(column, axis=1) for column in zip(*columns, strict=True))
    winner = xp.argmin(full, axis=1)
    if recipe.score_type == "nll":
        return Scores(fre, nll, winner, _take(nll, winner))
    normaliser = as_like([model.normaliser for model in classes], fre)
    return Scores(fre, nll, winner, _take(fre / normaliser, winner))


def as_like(values: Sequence[float], x: Any) -> Any:
    """Give numbers as an array like another one.

    Gives (n,), of its kind and dtype, and on its device.
    """
    xp = array_namespace(x)
    return xp.asarray(values, dtype=x.dtype, device=device(x))


def _scores_of(subspace: Subspace, recipe: Recipe, x: Any) -> tuple[Any, Any, Any]:
    """FRE, NLL over the full space, and the NLL that was asked for."""
    coordinates, residual = subspace.split(x)
    fre = squared_norm(residual)
    full = subspace.nll_of(coordinates, fre)
    if recipe.likelihood == "ppca":
        return fre, full, full
    distance = array_namespace(x).sum(coordinates**2 / subspace.variances, axis=1)
    return fre, full, subspace.subspace_nll_from(distance)


def _take(table: Any, columns: Any) -> Any:
    xp = array_namespace(table)
    return xp.take_along_axis(table, columns[:, None], axis=1)[:, 0]
