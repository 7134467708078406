"""From pictures to pooled feature maps: decode in threads, forward in batches, keep the order."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfm_mlflow.config import Options
from dfm_mlflow.images.decode import Decoder
from dfm_mlflow.images.depth import Depth, Words
from dfm_mlflow.images.limits import MAX_PIXELS
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.network.backbones import Backbone
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.copies import UPRIGHT, Copy
from dfm_mlflow.network.extraction import Batches, Extraction, Outcomes, Prepared, Table, workers
from dfm_mlflow.network.forward import CPU_PASS, Network
from dfm_mlflow.network.pixels import Pixels, stacked
from dfm_mlflow.network.pooling import Rule
from dfm_mlflow.network.reading import Held, Reading, Source, Unreadable, facts_of, key_of
from dfm_mlflow.storage.store import S3Object

# Pixels (n, 3, H, W), uint8, to one feature map (n, C, h, w) a layer.
Runner = Callable[[Tensor], list[Tensor]]

_CACHE_VERSION = 5
_AHEAD = 1 << 28  # bytes of pixels that wait for the network at most, and of one batch in any case
_LARGE_AT_ONCE = 2  # pictures above the usual limit of pixels that are decoded at the same time
MOST_HELD = 256 << 20  # bytes of inputs that are held for copies


class Extractor:
    """A backbone with its preprocessing, pooling, device and precision.

    Shapes: roi (H, W) bool.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        resize: str,
        pooling: Rule | Sequence[Sequence[Rule]],
        device: torch.device,
        precision: str = "fp32",
        batch_size: int = 16,
        cache: FeatureCache | None = None,
        *,
        tile: int | None = None,
        roi: np.ndarray | None = None,
        decoder: Decoder | None = None,
    ):
        self.backbone, self.size, self.resize, self.pooling = backbone, size, resize, pooling
        self.tile, self.roi = tile, roi
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.cache, self.decoder = cache, decoder or Decoder()
        self._runner: Runner | None = None  # run_batch itself would be a reference cycle
        self._decoding: AbstractContextManager[object] = nullcontext()
        self._few: AbstractContextManager[object] = nullcontext()
        if self.decoder.max_pixels > MAX_PIXELS:
            self._few = BoundedSemaphore(_LARGE_AT_ONCE)
        self._known: dict[Source, Prepared] = {}
        self._held: dict[Source, Held] = {}
        self._turns_input = size[0] == size[1] and roi is None
        self.padding = tuple(round(255 * m) for m in backbone.mean)
        self.pixels = Pixels(size, resize, self.padding, roi)
        self._network = Network(backbone, size, pooling, device, precision, tile=tile)
        self.fingerprint = self._make_fingerprint() if cache else ""

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        options: Options,
        device: torch.device,
        precision: str,
        batch_size: int = 16,
        *,
        roi: np.ndarray | None = None,
        cache: FeatureCache | None = None,
        depth: Depth | None = None,
        strict: bool = True,
    ) -> "Extractor":
        """Prepare and pool as the options of a training say; see the class for the rest.

        Shapes: roi (H, W) bool.
        """
        return cls(
            backbone,
            options.size,
            options.resize,
            options.pooling_rules,
            device,
            precision,
            batch_size,
            cache,
            tile=options.tile_size,
            roi=roi,
            decoder=Decoder(depth, options.real_range, options.max_pixels, strict),
        )

    def with_depth(self, depth: Depth, *, strict: bool = True) -> "Extractor":
        """Return a copy for pictures of a known `depth`, which refuses others if it is `strict`."""
        return self._copy(replace(self.decoder, depth=depth, strict=strict), self.cache)

    def with_cache(self, cache: FeatureCache | None) -> "Extractor":
        """Return a copy that keeps features in another `cache`, or in none."""
        return self._copy(self.decoder, cache)

    def _copy(self, decoder: Decoder, cache: FeatureCache | None) -> "Extractor":
        other = copy.copy(self)
        other.decoder, other.cache = decoder, cache
        other._known = {}
        other.fingerprint = other._make_fingerprint() if cache else ""
        return other

    def with_runner(self, runner: Runner, decoding: AbstractContextManager[object]) -> "Extractor":
        """Return a copy whose forward passes go through another hand."""
        other = copy.copy(self)
        other._runner, other._decoding = runner, decoding
        return other

    def remember(
        self,
        source: Source,
        digest: str,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        light: float,
        words: Words | None = None,
    ) -> None:
        """Keep the maps of one picture that the network has seen, for the next extraction.

        Shapes: maps (C, h, w).
        """
        arrays = [m.cpu().numpy() for m in maps]
        if self.cache:
            facts = facts_of(size, light, words)
            self.cache.put(key_of(self.fingerprint, digest), [*arrays, facts])
        self._known[source] = Prepared(size, cached=arrays, digest=digest, words=words, light=light)

    def recall(self, source: Source, digest: str) -> None:
        """Take the maps of one picture from the cache, where they are, for the next extraction."""
        if kept := self._reading().cached(digest, UPRIGHT):
            self._known[source] = kept

    def _hold(self, source: Source, picture: Prepared) -> None:
        pixels = picture.pixels
        if pixels is None or not self._turns_input:
            return
        if pixels.nbytes * (len(self._held) + 1) <= MOST_HELD:
            self._held[source] = Held(pixels, picture.size, picture.digest, picture.words)

    def release(self) -> None:
        """Let go of the inputs that are held."""
        self._held.clear()

    def take_back(self, sources: Sequence[Source], extraction: Extraction) -> None:
        """Remember what was extracted, for an extraction of the same pictures with copies."""
        for row, i in enumerate(extraction.kept):
            maps = [f[row].cpu().numpy() for f in extraction.features]
            size, digest = extraction.sizes[row], extraction.digests.get(i)
            words, light = extraction.words.get(i), extraction.light[row]
            self._known[sources[i]] = Prepared(
                size, cached=maps, digest=digest, words=words, light=light
            )

    def extract(
        self,
        sources: Sequence[Source],
        *,
        copies: Sequence[Copy] = (UPRIGHT,),
        hold: bool = False,
        progress: str | None = None,
    ) -> Extraction:
        """Extract the features of pictures, in their order; unreadable ones are reported."""
        n = len(sources)
        found, table = Outcomes(), Table(n * len(copies), self.device)
        bar = tqdm(total=n, desc=progress, unit="img", disable=None) if progress else nullcontext()
        # Few pictures are sooner ready where all cores join in each pass.
        cores = torch.get_num_threads() if self.device.type == "cpu" and not self._runner else 1
        together = cores > 1 and n >= 2 * CPU_PASS * cores
        with bar as shown, workers(sources, cores if together else 1) as pool:
            batches = Batches(
                CPU_PASS if together else self.batch_size,
                partial(self._forward_all, table=table, pool=None if together else pool),
                pool if together else None,
            )
            for i, outcome in self._prepare_all(sources, copies, pool):
                if shown is not None:
                    shown.update()
                if isinstance(outcome, Unreadable):
                    found.failed(i, outcome.why, outcome.digest)
                    continue
                found.read(i, outcome[0])
                if hold:
                    self._hold(sources[i], outcome[0])
                for j, one in enumerate(outcome):  # the first copies of all, then the second
                    if one.cached is not None:
                        table.put([i + j * n], [torch.from_numpy(a)[None] for a in one.cached])
                    else:
                        batches.add(i + j * n, one)
            batches.finish()
        rows = [i + j * n for j in range(len(copies)) for i in found.kept]
        return found.extraction(table.rows(rows))

    def _prepare_all(
        self, sources: Sequence[Source], copies: Sequence[Copy], pool: Executor | None
    ) -> Iterator[tuple[int, list[Prepared] | Unreadable]]:
        """Decode ahead of the network in threads, at most four batches of pictures."""
        reading = self._reading()
        bytes_each = 3 * self.size[0] * self.size[1]
        most = min(4 * self.batch_size, max(self.batch_size, _AHEAD // bytes_each))
        if pool is None:
            yield from ((i, reading.prepare(s, copies)) for i, s in enumerate(sources))
            return
        ahead: deque[tuple[int, Future[list[Prepared] | Unreadable]]] = deque()
        for i, source in enumerate(sources):
            ahead.append((i, pool.submit(reading.prepare, source, copies)))
            if len(ahead) * len(copies) >= most:
                index, future = ahead.popleft()
                yield index, future.result()
        for index, future in ahead:
            yield index, future.result()

    def _forward_all(
        self, batch: list[tuple[int, Prepared]], *, table: Table, pool: Executor | None
    ) -> None:
        pixels = stacked([item.pixels for _, item in batch if item.pixels is not None])
        maps = (self._runner or self.run_batch)(pixels)
        table.put([i for i, _ in batch], maps)
        if self.cache:
            arrays = [m.cpu().numpy() for m in maps]
            for row, (_, item) in enumerate(batch):
                if item.key:
                    entry = [*(a[row] for a in arrays), facts_of(item.size, item.light, item.words)]
                    if pool is None:
                        self.cache.put(item.key, entry)
                    else:  # written while the network goes on
                        pool.submit(self.cache.put, item.key, entry)

    def _reading(self) -> Reading:
        return Reading(
            self.pixels.resized,
            self._turns_input,
            self._decoding,
            self._known,
            self._held,
            self.cache,
            self.fingerprint,
            self.decoder,
            self._few,
        )

    def read(self, source: Path | S3Object) -> np.ndarray:
        """Read and decode a picture.

        Gives (H, W, 3) uint8.
        """
        return self.decoder.decode(read_picture(source, self.decoder.max_bytes))[0]

    def run_batch(self, pixels: Tensor) -> list[Tensor]:
        """Run the network on pixels.

        Shapes: pixels (n, 3, H, W) uint8; gives (n, C, h, w) float32, one for each layer.
        """
        return self._network.run(pixels)

    def _make_fingerprint(self) -> str:
        parts = [
            _CACHE_VERSION,
            self.backbone.fingerprint(),
            self.backbone.layers,
            self.size,
            self.resize,
            self.pooling,
            self.precision,
            # 2: the CPU resizes, and fp32 is without TF32
            self.device.type if self.device.type == "cpu" else f"{self.device.type}, 2",
            self.tile,
            self.decoder.depth and self.decoder.depth.white,
            self.decoder.real_range,
            self.decoder.max_pixels,
        ]
        if self.roi is not None:
            parts += [self.roi.shape, np.packbits(self.roi).tobytes()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
