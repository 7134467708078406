"""One picture from its source to what the network sees, or to the maps that it gave before."""

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import Decoder
from dfm_mlflow.images.depth import Words
from dfm_mlflow.images.picture import Picture, taken
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.copies import UPRIGHT, Copy, turned, turned_input
from dfm_mlflow.network.extraction import Prepared
from dfm_mlflow.storage.store import S3Object

Source = Picture | S3Object


@dataclass(frozen=True)
class Unreadable:
    """A source that is not a picture."""

    why: str
    digest: str | None  # SHA-256 of a file that could be read


@dataclass(frozen=True)
class Held:
    """What is kept of a picture that may be wanted again, as a copy."""

    pixels: Tensor  # (3, S, S) uint8: the network's input
    size: tuple[int, int]  # height and width of the picture in pixels
    digest: str | None  # SHA-256 of the file
    words: Words | None  # what its 16-bit values show


@dataclass(frozen=True, eq=False)
class Reading:
    """How an extractor reads."""

    # From RGB of shape (H, W, 3), uint8, or grey of shape (H, W), to the network's input of shape
    # (3, H, W), uint8.
    resized: Callable[[np.ndarray], Tensor]
    turns_input: bool  # whether copies are turned inputs, or inputs from turned pictures
    decoding: AbstractContextManager[object]  # entered while a picture is decoded
    # Pictures whose maps are remembered, by their source; each is given out once.
    known: MutableMapping[Source, Prepared]
    held: Mapping[Source, Held]  # pictures whose input is held, by their source
    cache: FeatureCache | None
    fingerprint: str  # of the extractor, where there is a cache
    decoder: Decoder
    # Entered while a picture is decoded, too: it lets few through where they may be very large.
    few: AbstractContextManager[object]

    def prepare(self, source: Source, copies: Sequence[Copy]) -> list[Prepared] | Unreadable:
        """Read a picture once, and prepare copies of it."""
        digest = None
        try:
            picture = source if isinstance(source, S3Object) else taken(source)
            if isinstance(picture, np.ndarray):
                return self._turned(picture, copies, {}, Prepared(_shape(picture)))
            found: dict[Copy, Prepared] = {}
            data, held = b"", None
            if isinstance(picture, bytes):
                data = picture
            else:
                if self.known and picture in self.known and UPRIGHT in copies:
                    found[UPRIGHT] = self.known.pop(picture)
                    if len(copies) == 1:
                        return [found[UPRIGHT]]
                held = self.held.get(picture)
                data = data if held else read_picture(picture, self.decoder.max_bytes)
            if held:
                digest = held.digest
            elif self.cache or not isinstance(picture, bytes):
                digest = hashlib.sha256(data).hexdigest()
            if self.cache and digest:
                for one in copies:
                    if one not in found and (kept := self.cached(digest, one)):
                        found[one] = kept
            if len(found) == len(copies):
                return [found[one] for one in copies]
            if held:
                plain = Prepared(held.size, digest=digest, words=held.words)
                return self._of_input(held.pixels, copies, found, plain)
            with self.decoding, self.few:
                image, words = self.decoder.decode(data, grey=True)
                plain = Prepared(_shape(image), digest=digest, words=words)
                return self._turned(image, copies, found, plain)
        except ImageError as error:
            return Unreadable(str(error), digest)

    def cached(self, digest: str, one: Copy) -> Prepared | None:
        """What the cache has of a picture, by the SHA-256 of its file, if anything."""
        kept = self.cache.get(key_of(self.fingerprint, digest, one)) if self.cache else None
        if kept is None:
            return None
        *maps, facts = kept
        height, width, light, *seen = facts.tolist()
        words = Words(*map(int, seen)) if seen else None
        self.decoder.check(words)
        size = (int(height), int(width))
        return Prepared(size, cached=maps, digest=digest, words=words, light=light)

    def _turned(
        self,
        image: np.ndarray,
        copies: Sequence[Copy],
        found: dict[Copy, Prepared],
        plain: Prepared,
    ) -> list[Prepared]:
        """Give what was found, and for other copies what `plain` is, turned."""
        if self.turns_input:
            return self._of_input(self.resized(image), copies, found, plain)
        seen = {one: self.resized(turned(image, one)) for one in copies if one not in found}
        return [
            found.get(one)
            or replace(
                plain,
                pixels=seen[one],
                key=self._key(plain.digest, one),
                light=light_of(seen[one]),
            )
            for one in copies
        ]

    def _of_input(
        self,
        pixels: Tensor,
        copies: Sequence[Copy],
        found: dict[Copy, Prepared],
        plain: Prepared,
    ) -> list[Prepared]:
        """Turn the network's input, where that is the same as to turn the picture."""
        plain = replace(plain, light=light_of(pixels))
        return [
            found.get(one)
            or replace(plain, pixels=turned_input(pixels, one), key=self._key(plain.digest, one))
            for one in copies
        ]

    def _key(self, digest: str | None, one: Copy) -> str | None:
        return key_of(self.fingerprint, digest, one) if self.cache and digest else None


def light_of(pixels: Tensor) -> float:
    """Mean level of what the network sees of a picture.

    Shapes: pixels (3, H, W) uint8.
    """
    return float(pixels.sum(dtype=torch.int64)) / pixels.numel()


def facts_of(size: tuple[int, int], light: float, words: Words | None) -> np.ndarray:
    """Put together what the cache keeps of a picture beside its maps.

    Gives (3,) or (5,) float64.
    """
    return np.array([*size, light, *(words or ())], dtype=np.float64)


def _shape(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def key_of(fingerprint: str, digest: str, copy: Copy = UPRIGHT) -> str:
    """Name of a picture's maps in the cache."""
    parts = [fingerprint, digest] + ([] if copy == UPRIGHT else [repr(tuple(copy))])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
