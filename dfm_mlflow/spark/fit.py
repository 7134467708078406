"""Fitting with the features in Spark's executors: extracted once, kept on their disks, passed over.

Features are kept by Spark (``DISK_ONLY``), which knows where each part lies and computes that of a
lost executor again; the cache of the local engine is a folder of one machine and knows neither.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any, TypeVar

import numpy as np
from safetensors.torch import load, save

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.core.crossfit import n_folds_of, unequal_folds
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.errors import FitError, SparkError
from dfm_mlflow.images.depth import Depth, Words
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.copies import Copy, augment_of, copies_of
from dfm_mlflow.network.depths import settled, was_misread
from dfm_mlflow.network.device import choose_device
from dfm_mlflow.network.extraction import Extraction, keys_of
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source
from dfm_mlflow.spark.blocks import Block
from dfm_mlflow.spark.class_passes import fit_class_in_passes
from dfm_mlflow.spark.session import check_version, session_of

PICTURES = 1024  # in a partition: a task of half a minute on one core
IN_BLOCK = 128  # pictures whose features are in a task's memory at once
_FAN_IN, _LAST = 16, 4  # sums that an executor merges, and that the driver does

_logger = logging.getLogger(__name__)
T = TypeVar("T")
# Of each class its passes and what is known of it; shapes of the maps; what is known of all.
_Everything = tuple[
    dict[str, "SparkPasses"], dict[str, Extraction], list[tuple[int, int, int]], Extraction
]


@dataclass(frozen=True)
class Recipe:
    """What an executor needs to build the extractor of the driver; goes there as bytes."""

    options: str  # resolved options, as JSON
    layers: tuple[str, ...]  # names in the backbone
    state: bytes  # tensors of the truncated backbone, as safetensors
    roi: np.ndarray | None  # (H, W) bool, or None
    device: str
    precision: str
    fingerprint: str  # of the backbone
    version: str  # of the driver's dfm-mlflow
    depth: Depth | None = None
    strict: bool = True  # whether pictures of another depth are refused

    @classmethod
    def of(cls, extractor: Extractor, options: Options) -> "Recipe":
        """Write down an `extractor`, and the `options` that it was built from."""
        backbone = extractor.backbone
        return cls(
            options.model_dump_json(),
            backbone.layers,
            save(backbone.state()),
            extractor.roi,
            str(extractor.device),
            extractor.precision,
            backbone.fingerprint(),
            dfm_mlflow.__version__,
            extractor.decoder.depth,
            extractor.decoder.strict,
        )

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        """Everything that a worker process keeps an extractor by; options name the region only."""
        region = None if self.roi is None else (self.roi.shape, np.packbits(self.roi).tobytes())
        known = (self.fingerprint, self.options, self.device, self.precision, self.version)
        return (*known, region, self.depth, self.strict)


@lru_cache(maxsize=1)
def _extractor(recipe: Recipe) -> Extractor:
    """Build the extractor once in a worker process, which Spark uses for many tasks."""
    check_version(recipe.version)
    options = Options.model_validate_json(recipe.options)
    backbone = build_backbone(
        options.backbone, recipe.layers, options.network_size, folded=load(recipe.state)
    )
    device = choose_device(recipe.device)
    return Extractor.of(
        backbone,
        options,
        device,
        recipe.precision,
        roi=recipe.roi,
        depth=recipe.depth,
        strict=recipe.strict,
    )


@dataclass(frozen=True, eq=False)
class _Extracted(Block):
    errors: dict[int, str]
    sizes: list[tuple[int, int]]
    digests: dict[int, str]
    words: dict[int, Words]
    light: list[float]


@dataclass(frozen=True, eq=False)
class SparkPasses:
    """Blocks in an RDD."""

    rdd: Any  # of :class:`~dfm_mlflow.spark.blocks.Block`, or of what was derived from each

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge by `merge` what `work` gives for every block.

        In each task, then in executors level by level, until at most four are left.
        ``treeReduce`` ends with as many values in the driver as the root of the number of tasks.
        """
        tasks = self.rdd.getNumPartitions()
        rdd, cores = self.rdd, self.rdd.context.defaultParallelism
        if tasks > cores:
            rdd, tasks = rdd.coalesce(cores), cores
        sums = rdd.mapPartitions(lambda blocks: _merged(blocks, work, merge))
        while tasks > _LAST:
            tasks = math.ceil(tasks / _FAN_IN)
            sums = (
                sums.mapPartitionsWithIndex(
                    lambda i, values, tasks=tasks: ((i % tasks, v) for v in values)
                )
                .reduceByKey(merge, tasks)
                .values()
            )
        whole: T = reduce(merge, sums.collect())
        return whole

    def each(self, work: Callable[[Any], T], *, large: bool = False) -> Iterable[T]:
        """What `work` gives for every block, in order; `large` ones a partition at a time."""
        results = self.rdd.map(work)
        found: Iterable[T] = results.toLocalIterator() if large else results.collect()
        return found

    def derive(self, work: Callable[[Any], Any]) -> "SparkPasses":
        """What `work` gives for every block, on the executors' disks."""
        return SparkPasses(_kept(self.rdd.map(work)))

    def join(self, other: "SparkPasses", merge: Callable[[Any, Any], Any]) -> "SparkPasses":
        """Merge by `merge`, block by block, with `other`; both lie on the same executor."""
        return SparkPasses(_kept(self.rdd.zip(other.rdd).map(lambda pair: merge(*pair))))

    def drop(self) -> None:
        """Give back the executors' disk."""
        self.rdd.unpersist()


def fit_on_spark(
    options: Options,
    extractor: Extractor,
    items: Sequence[Item],
    weights: dict[str, str],
    groups_of: Callable[[Extraction], Sequence[str] | None],
    *,
    session: Any = None,
    partitions: int | None = None,
) -> tuple[AnomalyDetector, HeldOutScores, Extraction]:
    """Fit and calibrate a detector on good pictures that the executors read.

    The result is that of :meth:`AnomalyDetector.fit` on one machine, up to rounding and whatever
    the number of partitions.
    """
    with session_of(session) as spark:
        context = _context(spark)
        copies = copies_of(options.augment)
        options = options.model_copy(update={"augment": augment_of(len(copies))})
        recipe = Recipe.of(extractor, options)
        names = list(dict.fromkeys(item.category for item in items))
        places = {
            name: [i for i, item in enumerate(items) if item.category == name] for name in names
        }

        def extracted(recipe: Recipe) -> _Everything:
            passes, parts = {}, {}
            for name, mine in places.items():
                sources = [items[i].path for i in mine]
                passes[name] = SparkPasses(_features(context, recipe, sources, copies, partitions))
                parts[name], shapes = _overview(passes[name])
            return passes, parts, shapes, _together([(places[name], parts[name]) for name in names])

        passes, parts, shapes, everything = extracted(recipe)
        known = settled(extractor, everything, options.stated_bits)
        if was_misread(extractor, known, everything):
            for misread in passes.values():
                misread.drop()
            passes, parts, shapes, everything = extracted(Recipe.of(known, options))
        group_of = dict(zip(everything.kept, groups_of(everything) or (), strict=False))
        if len(everything.kept) < 2:
            raise FitError(f"{len(everything.kept)} good pictures could be read; 2 are needed.")
        grids = grids_of(shapes, extractor.roi_cells, options.rows_are)
        models, held_out = [], []
        for name, mine in places.items():
            folds = np.full(len(mine), -1)
            kept = parts[name].kept
            own = [group_of[mine[i]] for i in kept] if group_of else None
            try:
                if not kept:
                    raise FitError("None of its pictures can be read: replace them.")
                keys = [parts[name].digests[i] for i in kept]
                deal = Deal.of(keys, own, options.seed, n_folds_of(len(copies) * len(kept)))
                if warning := unequal_folds(deal.folds):
                    _logger.warning("The class %s: %s", name, warning)
                folds[kept] = deal.folds
                read = SparkPasses(passes[name].rdd.filter(lambda b: len(b.index) > 0))
                model, seen = fit_class_in_passes(name, read, folds, deal, grids, options)
                model = replace(model, light=np.sort(parts[name].light))
            except FitError as error:
                raise FitError(f"The category {name} cannot be fitted. {error}") from None
            models.append(model)
            held_out.append(seen)
            passes[name].drop()
    at = {i: row for row, i in enumerate(everything.kept)}
    rows = [np.array([at[places[name][i]] for i in parts[name].kept]) for name in names]
    fitted = keys_of(everything)
    detector = AnomalyDetector(options, known, grids, models, weights, fitted=fitted)
    return detector, HeldOutScores.joined(held_out, rows), everything


def _context(spark: Any) -> Any:
    if not hasattr(spark, "_sc"):
        raise SparkError(
            "Fitting keeps features in the executors, which Spark Connect (sc://) cannot do: give "
            "the address of the cluster itself, such as spark://HOST:7077, k8s:// or yarn."
        )
    return spark.sparkContext


def _features(
    context: Any,
    recipe: Recipe,
    sources: Sequence[Source],
    copies: Sequence[Copy],
    partitions: int | None,
) -> Any:
    n = len(sources)
    if partitions is None:
        least = 2 * context.defaultParallelism
        partitions = max(least, math.ceil(n / PICTURES))
    partitions = max(1, min(n, partitions))
    shared = context.broadcast(recipe)

    def extract(part: Iterator[tuple[int, Source]]) -> Iterator[_Extracted]:
        listed = list(part)
        for start in range(0, len(listed), IN_BLOCK):
            chunk = listed[start : start + IN_BLOCK]
            extractor = _extractor(shared.value)
            found = extractor.extract([source for _, source in chunk], copies=copies)
            index = np.array([chunk[i][0] for i in found.kept], dtype=np.int64)
            errors = {chunk[i][0]: why for i, why in found.errors.items()}
            digests = {chunk[i][0]: digest for i, digest in found.digests.items()}
            words = {chunk[i][0]: seen for i, seen in found.words.items()}
            features = [f.cpu().numpy() for f in found.features]
            yield _Extracted(index, features, errors, found.sizes, digests, words, found.light)

    return _kept(context.parallelize(list(enumerate(sources)), partitions).mapPartitions(extract))


def _overview(passes: SparkPasses) -> tuple[Extraction, list[tuple[int, int, int]]]:
    """What is known of the pictures beside their features, and the shapes of those."""

    def about(b: _Extracted) -> tuple[Any, ...]:
        shapes = [tuple(f.shape[1:]) for f in b.features]
        return b.index, b.sizes, b.errors, b.digests, b.words, b.light, shapes

    blocks = list(passes.each(about))
    size = {int(i): s for index, sizes, *_ in blocks for i, s in zip(index, sizes, strict=True)}
    errors, digests, words = (
        {i: value for block in blocks for i, value in block[part].items()} for part in (2, 3, 4)
    )
    light = {int(i): x for b in blocks for i, x in zip(b[0], b[5], strict=True)}
    shapes: list[tuple[int, int, int]] = next((s for i, *_, s in blocks if len(i)), [])
    _logger.info("%d pictures extracted in %d partitions", len(size), passes.rdd.getNumPartitions())
    return _without_features(size, light, errors, digests, words), shapes


def _together(parts: Sequence[tuple[list[int], Extraction]]) -> Extraction:
    """Put the extractions of all classes together, whose pictures have these places."""
    size = {mine[i]: s for mine, e in parts for i, s in zip(e.kept, e.sizes, strict=True)}
    errors = {mine[i]: why for mine, e in parts for i, why in e.errors.items()}
    digests = {mine[i]: digest for mine, e in parts for i, digest in e.digests.items()}
    words = {mine[i]: seen for mine, e in parts for i, seen in e.words.items()}
    light = {mine[i]: x for mine, e in parts for i, x in zip(e.kept, e.light, strict=True)}
    return _without_features(size, light, errors, digests, words)


def _without_features(
    size: Mapping[int, tuple[int, int]],
    light: Mapping[int, float],
    errors: dict[int, str],
    digests: dict[int, str],
    words: dict[int, Words],
) -> Extraction:
    kept = sorted(size)
    sizes, levels = [size[i] for i in kept], [light[i] for i in kept]
    return Extraction([], kept, errors, sizes, digests, words, levels)


def _merged(
    blocks: Iterator[Any], work: Callable[[Any], T], merge: Callable[[T, T], T]
) -> Iterator[T]:
    results = map(work, blocks)
    for first in results:
        yield reduce(merge, results, first)


def _kept(rdd: Any) -> Any:
    from pyspark import StorageLevel

    return rdd.persist(StorageLevel.DISK_ONLY)
