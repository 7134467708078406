"""A subspace from rows that are too many, or too long, for memory and for a scatter matrix.

Seeded subspace iteration (Halko, Martinsson & Tropp, SIAM Rev. 53, 2011): a block of directions
goes out, each batch of rows gives its share of ``scatter @ block``, the shares add up in any
order and grouping, and Rayleigh-Ritz turns the sum into the next block. One pass over the rows
each; the loop over batches may run in this process or on many machines.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dfm_mlflow.core.checks import (
    EQUAL_ROWS,
    NO_ROWS,
    NOT_FINITE,
    TOO_LARGE,
    check_n_components,
    too_few,
)
from dfm_mlflow.core.subspace import Subspace, fixed_signs
from dfm_mlflow.errors import FitError

Source = Callable[[], Iterable[np.ndarray]]

MAX_PASSES = 60
_FIRST_BLOCK = 64
_OVERSAMPLING = 1.5
_GROWTH = 1e-3  # of the variance that a block holds, from pass to pass, where it has not settled
# Change of the kept variances from pass to pass, as a share of the variance that is not kept: that
# is what FRE is made of, and it may be a millionth of the whole. The error of a direction is about
# the root of it, and FRE within 1e-4 needs directions to a few digits more.
_TOLERANCE = 1e-11
_ROUNDING = 1e-12  # share of the whole below which a change that no longer falls is rounding


class TooManyComponents(FitError):  # noqa: N818
    """The wanted subspace has more than half of all dimensions."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Count, mean and total variance of rows; merging gives a new one."""

    n: int
    mean: np.ndarray  # (D,) float64
    total: float  # ``sum |x - mean|^2``

    @classmethod
    def of(cls, x: np.ndarray) -> "Summary":
        """Summarise the rows of `x`, of shape (n, D)."""
        mean = x.mean(axis=0, dtype=np.float64)
        return cls(len(x), mean, float(np.square(x - mean).sum()))

    def merge(self, other: "Summary") -> "Summary":
        """Summary of these and of `other` rows together."""
        n, difference = self.n + other.n, other.mean - self.mean
        between = float(difference @ difference) * self.n * other.n / n
        mean = self.mean + difference * (other.n / n)
        return Summary(n, mean, self.total + other.total + between)


class State(Enum):
    """Where an iteration is."""

    GROWING = "the block is too narrow for the wanted directions, and gets more"
    TURNING = "the block is wide enough, and turns into the rows"
    SETTLED = "the variances of the wanted directions no longer change, or passes ran out"


class SubspaceIteration:
    """The iteration of one class, driven from outside.

    Send :attr:`block` to where the rows are, add up what :func:`contribution` gives there, and
    call :meth:`advance` with the sum until it returns True; then ask for :meth:`subspace`.
    """

    def __init__(self, summary: Summary, n_components: float, seed: int = 42):
        check_n_components(n_components)
        self.summary, self.n_components = summary, n_components
        dimension = len(summary.mean)
        if summary.n < 2:
            raise FitError(too_few(summary.n))
        if not np.isfinite(summary.total):
            raise FitError(TOO_LARGE if np.isfinite(summary.mean).all() else NOT_FINITE)
        if not summary.total > 0:
            raise FitError(EQUAL_ROWS)
        self._limit = min(summary.n - 1, dimension)
        if isinstance(n_components, int | np.integer) and n_components > self._limit:
            raise FitError(
                f"n_components={n_components} is requested and the rows vary in at most "
                f"{self._limit} directions: give at most that, or a share of the variance."
            )
        self._rng = np.random.default_rng(seed)
        first = _FIRST_BLOCK
        if isinstance(n_components, int | np.integer):
            first = int(_OVERSAMPLING * n_components) + 10
        self._change, self._held, self._k = np.inf, 0.0, 0
        self._values = np.zeros(0)
        self.n_passes, self.state = 0, State.GROWING
        self.block = self._extended(np.zeros((dimension, 0)), first)

    def advance(self, product: np.ndarray) -> bool:
        """Take ``scatter @ block`` of all rows; True when the subspace has settled.

        Shapes: product (D, l).
        """
        self.n_passes += 1
        values, vectors = np.linalg.eigh(self.block.T @ product)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        before, self._values, self._ritz = self._values, values, self.block @ vectors
        turned, k = product @ vectors, self._wanted(values)
        if k is None or int(_OVERSAMPLING * k) > len(values) < self._limit:
            self.state = State.GROWING
            self._grow(turned, 2 * len(values) if k is None else int(_OVERSAMPLING * k) + 10)
            return False
        settled = self._settled(before, values, k) or self.n_passes >= MAX_PASSES
        self.state, self._k = State.SETTLED if settled else State.TURNING, k
        if not settled:
            self.block = _orthonormal(turned)
        return settled

    def subspace(self) -> Subspace:
        """Give the subspace of the last pass, with the noise variance of the rows themselves."""
        k, n, dimension = self._k, self.summary.n, len(self.summary.mean)
        variances = self._values[:k] / (n - 1)
        rest = (self.summary.total - float(self._values[:k].sum())) / (n - 1)
        noise = max(rest, 1e-12 * float(variances[0])) / max(1, dimension - k)
        return Subspace(self.summary.mean, fixed_signs(self._ritz[:, :k]), variances, noise, n)

    def _grow(self, turned: np.ndarray, width: int) -> None:
        """Go on with a wider block; what it holds has to be looked at again."""
        held, self._held = self._held, float(self._values.sum())
        holds_more = self._held > held * (1 + _GROWTH) and self.n_passes < MAX_PASSES
        self.block = self._extended(_orthonormal(turned), width, holds_more)
        self._change = np.inf

    def _settled(self, before: np.ndarray, values: np.ndarray, k: int) -> bool:
        """Whether the variances of the k kept directions no longer change."""
        if k != self._k or len(before) != len(values):  # the first look at this block
            return False
        last, self._change = self._change, float(np.abs(values[:k] - before[:k]).sum())
        rest = self.summary.total - float(values[:k].sum())
        if self._change <= _TOLERANCE * rest:
            return True
        return self._change <= _ROUNDING * self.summary.total and self._change >= last

    def _wanted(self, values: np.ndarray) -> int | None:
        """Number of directions that do, or None where the block is too small to hold them."""
        if isinstance(self.n_components, int | np.integer):
            return int(self.n_components)
        needed = self.n_components * self.summary.total * (1 - 1e-12)
        cumulated = np.cumsum(values)
        k = int(np.searchsorted(cumulated, needed)) + 1
        if k <= len(values):
            return k
        return self._limit if len(values) >= self._limit else None

    def _extended(self, block: np.ndarray, width: int, holds_more: bool = False) -> np.ndarray:
        """Add random directions up to a width."""
        width, half = min(width, self._limit), self._limit // 2
        if width > half > _FIRST_BLOCK and holds_more:
            # a block that still turns into the rows holds less than it will: no verdict yet
            width = max(half, block.shape[1])
        elif width > half > _FIRST_BLOCK:
            raise TooManyComponents(
                f"The subspace needs more than half of {self._limit} dimensions: use an exact "
                "solver, a smaller n_components or more pooling."
            )
        new = self._rng.normal(size=(len(block), max(0, width - block.shape[1])))
        return _orthonormal(np.concatenate([block, new], axis=1))


def contribution(x: np.ndarray, mean: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Share of one batch of rows in ``scatter @ block``.

    Shapes: x (m, D); mean (D,) float64; block (D, l) float64; gives (D, l) float64.
    """
    centred = x - mean
    share: np.ndarray = centred.T @ (centred @ block)
    return share


def fit_stream(source: Source, n_components: float = 0.97, *, seed: int = 42) -> Subspace:
    """Fit a subspace in several passes over batches of rows.

    source: Each call gives an iterable over the same rows, as arrays of shape (m, D), in any
      batches.
    seed: Of the first block; the result depends on it and on how rows are batched by rounding only.
    """
    summary: Summary | None = None
    for x in source():
        part = Summary.of(x)
        summary = part if summary is None else summary.merge(part)
    if summary is None:
        raise FitError(NO_ROWS)
    iteration = SubspaceIteration(summary, n_components, seed)
    done = False
    while not done:
        product = np.zeros_like(iteration.block)
        for x in source():
            product += contribution(x, summary.mean, iteration.block)
        done = iteration.advance(product)
    return iteration.subspace()


def _orthonormal(block: np.ndarray) -> np.ndarray:
    return np.linalg.qr(block)[0]
