"""The network that a job needs, in a precision that keeps the scores of its pictures."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.cells import crossfit_cells
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError, FitError, ImageError
from dfm_mlflow.images.decode import Decoder, decode_soft_mask
from dfm_mlflow.images.depth import Words
from dfm_mlflow.images.limits import MAX_PIXELS
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.depths import guessed
from dfm_mlflow.network.device import choose_device, choose_precision, half_precision
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.pixels import stacked
from dfm_mlflow.network.reading import light_of
from dfm_mlflow.network.weights import load_weights
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import S3Object, map_in_threads

# Pictures on which half precision is measured, and the fewest that say anything.
N_MEASURED, FEWEST_MEASURED = 16, 8
# Standard deviation of what half precision adds to held-out scores, in units of their own. Noise of
# a share r of the spread lowers an AUROC by less than 0.1 r^2: by 0.00025 at this limit.
MAX_CHANGE = 0.05
LEAST_REGION = 0.001  # of a picture; a smaller region of interest is likely to be a mistake

_logger = logging.getLogger(__name__)


def build_extractor(
    options: Options, items: Sequence[Item] = (), roi: np.ndarray | None = None
) -> tuple[Extractor, dict[str, str], Options]:
    """Build the network with its weights, and resolve what only it knows.

    Shapes: roi (H, W) bool.
    """
    device = choose_device(options.device)
    half = half_precision(device) if options.precision == "auto" and items else None
    with ThreadPoolExecutor(1) as beside:  # pictures are decoded while the network is built
        look = beside.submit(_look, options, items, bool(half))
        weights = load_weights(options.weights, options.backbone, options.seed)
        take = weights.take if weights.state is not None else None
        backbone = build_backbone(
            options.backbone, options.layer_names, options.network_size, take, seed=options.seed
        )
        cache = cache_of(options)
        roi = load_roi(options.roi, options.max_pixels) if roi is None else roi
        decoder, sample = look.result()

        def make(precision: str) -> Extractor:
            return Extractor.of(
                backbone,
                options,
                device,
                precision,
                roi=roi,
                cache=cache,
                depth=decoder.depth,
                strict=decoder.strict,
            )

        extractor = make(choose_precision(options.precision, device))
        if half:
            candidate = make(half)
            if _keeps_scores(extractor, candidate, sample, options):
                extractor = candidate
    resolved = options.model_copy(
        update={
            "layers": ",".join(backbone.layers),
            "device": str(device),
            "precision": extractor.precision,
        }
    )
    _logger.info(
        "%s to %s on %s in %s", options.backbone, resolved.layers, device, extractor.precision
    )
    return extractor, {"id": weights.id, "sha256": weights.sha256}, resolved


def for_new_pictures(extractor: Extractor, options: Options, items: Sequence[Item]) -> Extractor:
    """Give a model's network to a training on other pictures, as :func:`build_extractor` would."""
    decoder = guessed(extractor.decoder, [item.path for item in items], options.stated_bits)
    assert decoder.depth is not None  # a guess gives one
    return extractor.with_cache(cache_of(options)).with_depth(decoder.depth, strict=decoder.strict)


def cache_of(options: Options) -> FeatureCache | None:
    """Give the cache of features, if the `options` have one."""
    return FeatureCache() if options.cache else None


def _look(
    options: Options, items: Sequence[Item], with_sample: bool
) -> tuple[Decoder, list["SamplePicture"]]:
    """Guess the depth of pictures, and read a few of them where that is asked for."""
    decoder = Decoder(None, options.real_range, options.max_pixels)
    decoder = guessed(decoder, [item.path for item in items], options.stated_bits)
    return decoder, read_sample(items, decoder) if with_sample else []


def _keeps_scores(
    full: Extractor, half: Extractor, sample: Sequence["SamplePicture"], options: Options
) -> bool:
    """Whether good pictures keep their scores in half precision."""
    try:
        kinds = options.rows_are
        change = precision_change(
            full,
            half,
            sample,
            float(options.pca_level.split(",")[0]),
            options.seed,
            rows=list(zip(kinds, options.levels_of(len(kinds)), strict=True)),
        )
    except FitError as error:
        _logger.info("precision=auto takes %s: %s", full.precision, error)
        return False
    kept = change <= MAX_CHANGE
    _logger.info(
        "precision=auto takes %s: in %s held-out scores of good pictures change by %.2g of their "
        "spread, where %.2g is the limit.",
        half.precision if kept else full.precision,
        half.precision,
        change,
        MAX_CHANGE,
    )
    return kept


def precision_change(
    full: Extractor,
    half: Extractor,
    sample: Sequence["SamplePicture"],
    level: float,
    seed: int = 42,
    *,
    rows: Sequence[tuple[str, float]] = (),
) -> float:
    """How much held-out FREs of good pictures change with the precision.

    Pictures of one class go through both networks, and are held out of subspaces of the others.
    `half` remembers their maps, and its cache the result.
    """
    if len(sample) < FEWEST_MEASURED:
        raise FitError(f"{len(sample)} pictures are too few to measure half precision on.")
    parts = [
        full.fingerprint,
        half.fingerprint,
        str(level),
        str(rows),
        str(seed),
        *(s.digest for s in sample),
    ]
    key, known = hashlib.sha256("\0".join(parts).encode()).hexdigest(), half.cache
    if known and (measured := known.get(key)):
        for one in sample:  # so that no picture is read again
            full.recall(one.path, one.digest)
            half.recall(one.path, one.digest)
        return float(measured[0])
    pixels = stacked([full.pixels.resized(s.image) for s in sample])
    before, after = full.run_batch(pixels), half.run_batch(pixels)
    for extractor, maps in ((full, before), (half, after)):  # whichever is chosen
        for i, one in enumerate(sample):
            size = (one.image.shape[0], one.image.shape[1])
            light, own = light_of(pixels[i]), [m[i] for m in maps]
            extractor.remember(one.path, one.digest, own, size, light, one.words)
    kinds = rows or [("picture", level)] * len(before)
    change = max(
        _change(a, b, *kind, seed) for a, b, kind in zip(before, after, kinds, strict=True)
    )
    if known:
        known.put(key, [np.array(change)])
    return change


@dataclass(frozen=True, eq=False)
class SamplePicture:
    """A decoded picture, with the SHA-256 of its file."""

    path: Path | S3Object
    digest: str  # SHA-256 of the file, hexadecimal
    image: np.ndarray  # (H, W, 3) uint8, or (H, W) of a grey one
    words: Words | None = None  # what its 16-bit values show


def read_sample(items: Sequence[Item], decoder: Decoder | None = None) -> list[SamplePicture]:
    """Read a few pictures of the first class, evenly spread; unreadable ones are left out."""
    decoder = decoder or Decoder()

    def decoded(path: Path | S3Object) -> SamplePicture | None:
        try:
            data = read_picture(path, decoder.max_bytes)
            digest = hashlib.sha256(data).hexdigest()
            return SamplePicture(path, digest, *decoder.decode(data, grey=True))
        except ImageError:  # the extraction reports it
            return None

    mine = [i for i in items if i.category == items[0].category]
    step = max(1, len(mine) // N_MEASURED)
    found = map_in_threads(decoded, [i.path for i in mine[::step][:N_MEASURED]])
    return [one for one in found if one]


def _change(before: Tensor, after: Tensor, kind: str, level: float, seed: int) -> float:
    scores = []
    for features in (before, after):
        folds = assign_folds(len(features), seed=seed)
        if kind == "cell":
            cells = features.flatten(2).transpose(1, 2).cpu().numpy()
            held_out = crossfit_cells(partial(iter, [cells]), folds, level)[1]
            scores.append(held_out.maps.sum(axis=1, dtype=np.float64))
        else:
            scores.append(crossfit(features.flatten(1).cpu().numpy(), folds, level).fre)
    spread = float(scores[0].std())
    if not spread > 0:
        raise FitError("The pictures are too alike to measure half precision on.")
    return float((scores[1] - scores[0]).std()) / spread


def load_roi(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Read the mask of the region of interest.

    Gives (H, W) bool, or None.
    """
    if path == "none":
        return None
    place = local_path(path).absolute()
    try:
        mask, soft = decode_soft_mask(place.read_bytes(), max_pixels)
    except (OSError, ImageError) as error:
        raise DataError(f"roi={place} cannot be read ({error}): give a mask PNG.") from None
    share = float(mask.mean())
    if share == 0:
        raise DataError(f"roi={place} has no nonzero pixel: paint the region that matters white.")
    odd = share < LEAST_REGION or share == 1
    _logger.log(
        logging.WARNING if odd else logging.INFO,
        "roi=%s: %.3g %% of the picture counts%s%s",
        place,
        100 * share,
        "; is that the region that was meant? White counts, black does not." if odd else ".",
        " Noise or soft edges are cut at half of the largest value." if soft else "",
    )
    return mask
