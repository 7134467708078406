"""From pictures to pooled feature maps: decode in threads, forward in batches, keep the order."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dfm_mlflow.errors import BackboneError, ImageError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.backbones import Backbone
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.device import DTYPES

Source = bytes | Path | np.ndarray

_CACHE_VERSION = 1


@dataclass(frozen=True)
class Extraction:
    """Features of the pictures that could be read.

    Attributes
    ----------
    features : list of Tensor
        One per layer, of shape ``(m, C, h, w)``, float32, on the extractor's device.
    kept : list of int
        Index of the source of each of the m rows, ascending.
    errors : dict of int to str
        Why a source could not be read.
    sizes : list of tuple of int
        Height and width of each kept picture in pixels.
    """

    features: list[Tensor]
    kept: list[int]
    errors: dict[int, str]
    sizes: list[tuple[int, int]]


@dataclass
class _Prepared:
    size: tuple[int, int]
    pixels: Tensor | None = None  # (3, H, W) uint8
    cached: list[np.ndarray] | None = None
    key: str | None = None


class Extractor:
    """A backbone with its preprocessing, pooling, device and precision.

    Parameters
    ----------
    backbone : Backbone
        Frozen network.
    size : tuple of int
        Network input (height, width) in pixels.
    resize : {"stretch", "keep"}
        Stretch to `size`, or keep the aspect ratio and pad with the mean colour.
    pooling : int
        Kernel and stride of average pooling; a partial window at the border averages what it has.
    device : torch.device
        Where the network runs.
    precision : {"fp32", "bf16", "fp16"}
        Arithmetic of the network; features are float32.
    batch_size : int
        Pictures in one forward pass.
    cache : FeatureCache, optional
        Where features are kept between runs.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        resize: str,
        pooling: int,
        device: torch.device,
        precision: str = "fp32",
        batch_size: int = 16,
        cache: FeatureCache | None = None,
    ):
        self.backbone, self.size, self.resize, self.pooling = backbone, size, resize, pooling
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.cache = cache
        self._dtype = DTYPES[precision]
        self._network = backbone.module.to(
            device=device, dtype=self._dtype, memory_format=torch.channels_last
        )
        mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(backbone.std, device=device).view(1, 3, 1, 1)
        self._scale, self._shift = 1 / (255 * std), mean / std
        self._padding = tuple(round(255 * m) for m in backbone.mean)
        self._fingerprint = self._make_fingerprint() if cache else ""

    def extract(self, sources: Sequence[Source], *, progress: str | None = None) -> Extraction:
        """Extract the features of pictures, in their order; unreadable ones are reported.

        Parameters
        ----------
        sources : sequence of bytes, Path or ndarray
            Encoded pictures, files, or RGB arrays of shape (H, W, 3), uint8.
        progress : str, optional
            Title of a progress bar, shown on a terminal only.
        """
        rows: dict[int, list[Tensor]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        errors: dict[int, str] = {}
        waiting: list[tuple[int, _Prepared]] = []

        def forward() -> None:
            for (i, item), maps in zip(waiting, self._run(waiting), strict=True):
                rows[i] = maps
                if self.cache and item.key:
                    arrays = [m.cpu().numpy() for m in maps]
                    self.cache.put(item.key, [*arrays, np.array(item.size)])
            waiting.clear()

        bar = tqdm(
            total=len(sources), desc=progress, unit="img", disable=None if progress else True
        )
        with bar:
            for i, outcome in self._prepare_all(sources):
                bar.update()
                if isinstance(outcome, ImageError):
                    errors[i] = str(outcome)
                    continue
                sizes[i] = outcome.size
                if outcome.cached is not None:
                    rows[i] = [torch.from_numpy(a).to(self.device) for a in outcome.cached]
                    continue
                waiting.append((i, outcome))
                if len(waiting) == self.batch_size:
                    forward()
            if waiting:
                forward()
        kept = sorted(rows)
        layers = range(len(self.backbone.layers))
        features = [torch.stack([rows[i][j] for i in kept]) for j in layers] if kept else []
        return Extraction(features, kept, errors, [sizes[i] for i in kept])

    def _prepare_all(
        self, sources: Sequence[Source]
    ) -> Iterator[tuple[int, _Prepared | ImageError]]:
        """Decode ahead of the network in threads, at most four batches of pixels in memory."""
        if len(sources) == 1:
            yield 0, self._prepare(sources[0])
            return
        ahead: deque[tuple[int, Future]] = deque()
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
            for i, source in enumerate(sources):
                ahead.append((i, pool.submit(self._prepare, source)))
                if len(ahead) >= 4 * self.batch_size:
                    index, future = ahead.popleft()
                    yield index, future.result()
            for index, future in ahead:
                yield index, future.result()

    def _prepare(self, source: Source) -> _Prepared | ImageError:
        try:
            if isinstance(source, np.ndarray):
                return _Prepared(_shape(source), self.resized(source))
            try:
                data = source.read_bytes() if isinstance(source, Path) else source
            except OSError as error:
                raise ImageError(f"The file cannot be read ({error.strerror}): check it.") from None
            key = self._key(data) if self.cache else None
            cached = self.cache.get(key) if self.cache and key else None
            if cached is not None:
                *maps, size = cached
                return _Prepared(tuple(size.tolist()), cached=maps)
            image = decode_image(data)
            return _Prepared(_shape(image), self.resized(image), key=key)
        except ImageError as error:
            return error

    def resized(self, image: np.ndarray) -> Tensor:
        """Resize an RGB array to the network's input, antialiased, as uint8 ``(3, H, W)``."""
        pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
        target = self.size
        if self.resize == "keep":
            ratio = min(self.size[0] / image.shape[0], self.size[1] / image.shape[1])
            target = tuple(max(1, round(s * ratio)) for s in image.shape[:2])
        if tuple(pixels.shape[2:]) != target:
            pixels = F.interpolate(
                pixels, target, mode="bilinear", antialias=True, align_corners=False
            )
        if target == self.size:
            return pixels[0]
        padded = torch.tensor(self._padding, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        top, left = ((s - t) // 2 for s, t in zip(self.size, target, strict=True))
        padded[:, top : top + target[0], left : left + target[1]] = pixels[0]
        return padded

    @torch.inference_mode()
    def _run(self, batch: list[tuple[int, _Prepared]]) -> list[list[Tensor]]:
        pixels = torch.stack([item.pixels for _, item in batch if item.pixels is not None])
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        inputs = (pixels * self._scale - self._shift).to(
            dtype=self._dtype, memory_format=torch.channels_last
        )
        outputs = self._network(inputs)
        maps = [self._pool(name, outputs[name]) for name in self.backbone.layers]
        return [[m[i] for m in maps] for i in range(len(batch))]

    def _pool(self, layer: str, output: Tensor) -> Tensor:
        if output.ndim == 2:
            output = output[:, :, None, None]
        if output.ndim != 4:
            raise BackboneError(
                f"The layer {layer} gives {output.ndim} axes, not a feature map (n, C, h, w): "
                "choose a convolutional layer."
            )
        output = output.float()
        kernel = tuple(min(self.pooling, s) for s in output.shape[2:])
        if kernel != (1, 1):
            output = F.avg_pool2d(output, kernel, ceil_mode=True)
        return output.contiguous()

    def _key(self, data: bytes) -> str:
        content = hashlib.sha256(data).hexdigest()
        return hashlib.sha256(f"{self._fingerprint}\0{content}".encode()).hexdigest()

    def _make_fingerprint(self) -> str:
        parts = (_CACHE_VERSION, self.backbone.fingerprint(), self.backbone.layers, self.size,
                 self.resize, self.pooling, self.precision, self.device.type)  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _shape(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
