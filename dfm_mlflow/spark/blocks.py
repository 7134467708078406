"""Blocks of features that stay where they are, and what goes over them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Block:
    """Features of a few pictures of one class."""

    index: np.ndarray  # (m,) int: place of each picture in the list of the class
    # (m * (1 + c), C, h, w) float32: One for each layer and scale: the m pictures, then c turned
    # copies of each.
    features: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class HeldOutBlock:
    """What the pictures of a block look like under the subspaces of other folds, in each layer.

    Shapes: fre, mahalanobis (m,) float64.
    """

    index: np.ndarray  # (m,) int
    maps: list[np.ndarray]  # (m, h, w) float32
    fre: list[np.ndarray]
    mahalanobis: list[np.ndarray]
    # (m, l) float32: First coordinates, along directions that were found without the fold.
    leading_coordinates: list[np.ndarray]


class Passes(Protocol):
    """Blocks that stay where they are; functions go there."""

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge by `merge` what `work` gives for every block; any order and grouping."""

    def each(self, work: Callable[[Any], T], *, large: bool = False) -> Iterable[T]:
        """What `work` gives for every block; `large` where all together are."""

    def derive(self, work: Callable[[Any], Any]) -> "Self":
        """What `work` gives for every block, kept where the blocks are."""

    def look_up(self, work: Callable[[Any], Any]) -> "Self":
        """What `work`, which is quick, gives for every block; not kept."""

    def join(self, other: "Self", merge: Callable[[Any, Any], Any]) -> "Self":
        """Merge by `merge`, block by block, with `other`, derived from the same blocks."""

    def kept(self) -> "Self":
        """The same, kept where the blocks are."""

    def drop(self) -> None:
        """Give back the space of what was derived."""


@dataclass(frozen=True, eq=False)
class LocalPasses:
    """Blocks in this process."""

    blocks: Sequence[Any]  # :class:`Block`, or what was derived from each

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge by `merge` what `work` gives for every block."""
        return reduce(merge, map(work, self.blocks))

    def each(self, work: Callable[[Any], T], *, large: bool = False) -> Iterable[T]:
        """What `work` gives for every block, one after another, `large` or not."""
        return map(work, self.blocks)

    def derive(self, work: Callable[[Any], Any]) -> "LocalPasses":
        """What `work` gives for every block."""
        return LocalPasses([work(b) for b in self.blocks])

    def look_up(self, work: Callable[[Any], Any]) -> "LocalPasses":
        """What `work` gives for every block."""
        return self.derive(work)

    def join(self, other: "LocalPasses", merge: Callable[[Any, Any], Any]) -> "LocalPasses":
        """Merge by `merge`, block by block, with `other`."""
        return LocalPasses([merge(a, b) for a, b in zip(self.blocks, other.blocks, strict=True)])

    def kept(self) -> "LocalPasses":
        """The same."""
        return self

    def drop(self) -> None:
        """Nothing is kept elsewhere."""
