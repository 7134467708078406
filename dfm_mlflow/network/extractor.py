"""From pictures to pooled feature maps: decode in threads, forward in batches, keep the order."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dfm_mlflow.errors import BackboneError, ImageError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.images.storage import S3Object, threads_for
from dfm_mlflow.network.backbones import Backbone
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.device import DTYPES
from dfm_mlflow.network.tiles import run_tiles, scaled_mask
from dfm_mlflow.network.tracing import running

Source = bytes | Path | S3Object | np.ndarray
# Pixels (n, 3, H, W), uint8, to one feature map (n, C, h, w) a layer.
Runner = Callable[[Tensor], list[Tensor]]

_CACHE_VERSION = 2


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
    pooling : int or str
        Kernel and stride of average pooling, or ``stride:N``: on each layer the kernel that makes
        cells of N input pixels. A partial window at the border averages what it has.
    device : torch.device
        Where the network runs.
    precision : {"fp32", "bf16", "fp16"}
        Arithmetic of the network; features are float32.
    batch_size : int
        Pictures in one forward pass.
    cache : FeatureCache, optional
        Where features are kept between runs.
    tile : int, optional
        The network sees overlapping tiles of this side, and their maps are put together, so that a
        large input costs the memory of a small one.
    roi : ndarray of shape (H, W), bool, optional
        Region of interest; pixels outside it are painted in the mean colour before anything else,
        in pictures of another size scaled to theirs.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        resize: str,
        pooling: int | str,
        device: torch.device,
        precision: str = "fp32",
        batch_size: int = 16,
        cache: FeatureCache | None = None,
        *,
        tile: int | None = None,
        roi: np.ndarray | None = None,
    ):
        self.backbone, self.size, self.resize, self.pooling = backbone, size, resize, pooling
        self.tile, self.roi = tile, roi
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.cache = cache
        self._runner: Runner | None = None  # run_batch itself would be a reference cycle
        self._decoding: AbstractContextManager = nullcontext()
        self._dtype = DTYPES[precision]
        self._network = backbone.module.to(
            device=device, dtype=self._dtype, memory_format=torch.channels_last
        )
        mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(backbone.std, device=device).view(1, 3, 1, 1)
        self._scale, self._shift = 1 / (255 * std), mean / std
        self.padding = tuple(round(255 * m) for m in backbone.mean)
        self._fingerprint = self._make_fingerprint() if cache else ""

    def with_runner(self, runner: Runner, decoding: AbstractContextManager) -> "Extractor":
        """Return a copy whose forward passes go through another hand.

        Parameters
        ----------
        runner : callable
            Calls :meth:`run_batch`, perhaps for several callers at once.
        decoding : context manager
            Entered by every thread while it decodes a picture, such as a semaphore.
        """
        other = copy.copy(self)
        other._runner, other._decoding = runner, decoding
        return other

    def extract(self, sources: Sequence[Source], *, progress: str | None = None) -> Extraction:
        """Extract the features of pictures, in their order; unreadable ones are reported.

        Parameters
        ----------
        sources : sequence of bytes, Path, S3Object or ndarray
            Encoded pictures, files, objects, or RGB arrays of shape (H, W, 3), uint8.
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
        with ThreadPoolExecutor(max_workers=threads_for(sources)) as pool:
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
                data = source.read_bytes() if isinstance(source, Path | S3Object) else source
            except OSError as error:
                raise ImageError(f"The file cannot be read ({error.strerror}): check it.") from None
            key = self._key(data) if self.cache else None
            cached = self.cache.get(key) if self.cache and key else None
            if cached is not None:
                *maps, size = cached
                return _Prepared(tuple(size.tolist()), cached=maps)
            with self._decoding:
                image = decode_image(data)
                return _Prepared(_shape(image), self.resized(image), key=key)
        except ImageError as error:
            return error

    def resized(self, image: np.ndarray) -> Tensor:
        """Resize an RGB array to the network's input, antialiased, as uint8 ``(3, H, W)``."""
        if self.roi is not None:
            inside = scaled_mask(self.roi, _shape(image))
            image = np.where(inside[:, :, None], image, np.array(self.padding, np.uint8))
        return self._fitted(image, self.padding)

    def roi_cells(self, grid: tuple[int, int]) -> np.ndarray:
        """Which cells of a feature grid the region of interest touches, of shape (h, w), bool."""
        if self.roi is None:
            return np.ones(grid, dtype=bool)
        mask = np.repeat(self.roi[:, :, None], 3, axis=2).astype(np.uint8) * 255
        covered = self._fitted(mask, (0, 0, 0))[:1].float()
        return (F.adaptive_max_pool2d(covered[None], grid)[0, 0] > 0).numpy()

    def filled_part(self, size: tuple[int, int]) -> tuple[float, float]:
        """Share of the input's height and width that a picture of (height, width) fills."""
        target = self._target(size)
        return target[0] / self.size[0], target[1] / self.size[1]

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize == "stretch":
            return self.size
        ratio = min(self.size[0] / size[0], self.size[1] / size[1])
        return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))

    def _fitted(self, image: np.ndarray, padding: tuple[int, ...]) -> Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
        target = self._target(_shape(image))
        if tuple(pixels.shape[2:]) != target:
            pixels = F.interpolate(
                pixels, target, mode="bilinear", antialias=True, align_corners=False
            )
        if target == self.size:
            return pixels[0]
        padded = torch.tensor(padding, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        top, left = ((s - t) // 2 for s, t in zip(self.size, target, strict=True))
        padded[:, top : top + target[0], left : left + target[1]] = pixels[0]
        return padded

    def _run(self, batch: list[tuple[int, _Prepared]]) -> list[list[Tensor]]:
        pixels = torch.stack([item.pixels for _, item in batch if item.pixels is not None])
        maps = (self._runner or self.run_batch)(pixels)
        return [[m[i] for m in maps] for i in range(len(batch))]

    @torch.inference_mode()
    def run_batch(self, pixels: Tensor) -> list[Tensor]:
        """Run the network once on pixels of shape (n, 3, H, W), uint8; one feature map a layer."""
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        inputs = (pixels * self._scale - self._shift).to(
            dtype=self._dtype, memory_format=torch.channels_last
        )
        with running():
            outputs = (
                run_tiles(self._network, inputs, self.tile) if self.tile else self._network(inputs)
            )
        return [self._pool(name, outputs[name]) for name in self.backbone.layers]

    def _pool(self, layer: str, output: Tensor) -> Tensor:
        if output.ndim == 2:
            output = output[:, :, None, None]
        if output.ndim != 4:
            raise BackboneError(
                f"The layer {layer} gives {output.ndim} axes, not a feature map (n, C, h, w): "
                "choose a convolutional layer."
            )
        output = output.float()
        kernel = tuple(
            min(_kernel(self.pooling, s, pixels), s)
            for s, pixels in zip(output.shape[2:], self.size, strict=True)
        )
        if kernel != (1, 1):
            output = F.avg_pool2d(output, kernel, ceil_mode=True)
        return output.contiguous()

    def _key(self, data: bytes) -> str:
        content = hashlib.sha256(data).hexdigest()
        return hashlib.sha256(f"{self._fingerprint}\0{content}".encode()).hexdigest()

    def _make_fingerprint(self) -> str:
        parts = [_CACHE_VERSION, self.backbone.fingerprint(), self.backbone.layers, self.size,
                 self.resize, self.pooling, self.precision, self.device.type,
                 self.tile]  # fmt: skip
        if self.roi is not None:
            parts += [self.roi.shape, np.packbits(self.roi).tobytes()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _shape(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _kernel(pooling: int | str, cells: int, pixels: int) -> int:
    if isinstance(pooling, str):
        return max(1, round(int(pooling.removeprefix("stride:")) * cells / pixels))
    return pooling
