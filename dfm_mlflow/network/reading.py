"""One picture from its source to what the network sees, or to the maps that it gave before."""

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.copies import UPRIGHT, Copy, turned, turned_input
from dfm_mlflow.network.extraction import Prepared
from dfm_mlflow.storage.store import S3Object

Source = bytes | Path | S3Object | np.ndarray


@dataclass(frozen=True)
class Unreadable:
    """A source that is no picture.

    Attributes
    ----------
    why : str
    digest : str or None
        SHA-256 of a file that could be read.
    """

    why: str
    digest: str | None


@dataclass(frozen=True)
class Held:
    """What is kept of a picture that may be wanted again, as a copy.

    Attributes
    ----------
    pixels : Tensor of shape (3, S, S), uint8
        The network's input.
    size : tuple of int
        Height and width of the picture in pixels.
    digest : str or None
        SHA-256 of the file.
    """

    pixels: Tensor
    size: tuple[int, int]
    digest: str | None


@dataclass(frozen=True, eq=False)
class Reading:
    """How an extractor reads.

    Attributes
    ----------
    resized : callable
        From RGB of shape (H, W, 3), uint8, to the network's input of shape (3, H, W), uint8.
    turns_input : bool
        Whether copies are turned inputs, or inputs from turned pictures.
    decoding : context manager
        Entered while a picture is decoded.
    known : dict
        Pictures whose maps are remembered, by their source; each is given out once.
    held : dict
        Pictures whose input is held, by their source.
    cache : FeatureCache or None
    fingerprint : str
        Of the extractor, where there is a cache.
    """

    resized: Callable[[np.ndarray], Tensor]
    turns_input: bool
    decoding: AbstractContextManager[object]
    known: MutableMapping[Source, Prepared]
    held: Mapping[Source, Held]
    cache: FeatureCache | None
    fingerprint: str

    def prepare(self, source: Source, copies: Sequence[Copy]) -> list[Prepared] | Unreadable:
        """Read a picture once, and prepare copies of it.

        Parameters
        ----------
        source : bytes, Path, S3Object or ndarray of shape (H, W, 3), uint8
        copies : sequence of Copy

        Returns
        -------
        list of Prepared, or Unreadable
            One for each copy.
        """
        digest = None
        try:
            if isinstance(source, np.ndarray):
                return self._turned(source, copies, {}, None)
            found: dict[Copy, Prepared] = {}
            if self.known and source in self.known and UPRIGHT in copies:
                found[UPRIGHT] = self.known.pop(source)
                if len(copies) == 1:
                    return [found[UPRIGHT]]
            held = self.held.get(source) if self.held else None
            if held:
                digest = held.digest
            else:
                data = read_picture(source) if isinstance(source, Path | S3Object) else source
                if self.cache or not isinstance(source, bytes):
                    digest = hashlib.sha256(data).hexdigest()
            self._look_up(digest, copies, found)
            if len(found) == len(copies):
                return [found[one] for one in copies]
            if held:
                return self._of_input(held.pixels, held.size, copies, found, digest)
            with self.decoding:
                return self._turned(decode_image(data), copies, found, digest)
        except ImageError as error:
            return Unreadable(str(error), digest)

    def _look_up(
        self, digest: str | None, copies: Sequence[Copy], found: dict[Copy, Prepared]
    ) -> None:
        if not (self.cache and digest):
            return
        for one in copies:
            kept = self.cache.get(key_of(self.fingerprint, digest, one))
            if one not in found and kept is not None:
                *maps, size = kept
                found[one] = Prepared(tuple(size.tolist()), cached=maps, digest=digest)

    def _turned(
        self,
        image: np.ndarray,
        copies: Sequence[Copy],
        found: dict[Copy, Prepared],
        digest: str | None,
    ) -> list[Prepared]:
        size = image.shape[0], image.shape[1]
        if self.turns_input:
            return self._of_input(self.resized(image), size, copies, found, digest)
        return [
            found.get(one)
            or Prepared(
                size,
                self.resized(turned(image, one)),
                key=self._key(digest, one),
                digest=digest,
            )
            for one in copies
        ]

    def _of_input(
        self,
        pixels: Tensor,
        size: tuple[int, int],
        copies: Sequence[Copy],
        found: dict[Copy, Prepared],
        digest: str | None,
    ) -> list[Prepared]:
        return [
            found.get(one)
            or Prepared(size, turned_input(pixels, one), key=self._key(digest, one), digest=digest)
            for one in copies
        ]

    def _key(self, digest: str | None, one: Copy) -> str | None:
        return key_of(self.fingerprint, digest, one) if self.cache and digest else None


def key_of(fingerprint: str, digest: str, copy: Copy = UPRIGHT) -> str:
    """Name of a picture's maps in the cache.

    Parameters
    ----------
    fingerprint : str
        Of the extractor.
    digest : str
        SHA-256 of the picture's file.
    copy : Copy

    Returns
    -------
    str
    """
    parts = [fingerprint, digest] + ([] if copy == UPRIGHT else [repr(tuple(copy))])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
