"""Fitting with the features in Spark's executors: extracted once, kept on their disks, passed over.

Those of few pictures come to the driver instead, and are passed over there.

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
from dfm_mlflow.detector.class_model import ClassModel
from dfm_mlflow.detector.grid import Grid, grids_of
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.errors import FitError, SparkError
from dfm_mlflow.images.depth import Depth
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.copies import Copy, augment_of, copies_of
from dfm_mlflow.network.depths import settled, was_misread
from dfm_mlflow.network.device import choose_device
from dfm_mlflow.network.extraction import Extraction, Outcomes, keys_of
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source
from dfm_mlflow.spark.blocks import Block, LocalPasses, Passes
from dfm_mlflow.spark.class_passes import fit_class_in_passes
from dfm_mlflow.spark.session import check_version, keep_to_processors, session_of

PICTURES = 1024  # in a partition: a task of half a minute on one core
IN_BLOCK = 128  # pictures whose features are in a task's memory at once
MOST_BROUGHT = 512 << 20  # bytes of the features of a class that come to the driver
_FAN_IN, _LAST = 16, 4  # sums that an executor merges, and that the driver does

_logger = logging.getLogger(__name__)
T = TypeVar("T")


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
    known: Extraction  # what is known of the pictures, without their features


@dataclass(frozen=True, eq=False)
class SparkPasses:
    """Blocks in an RDD."""

    rdd: Any  # of :class:`~dfm_mlflow.spark.blocks.Block`, or of what was derived from each
    becomes: Callable[[Any], Any] | None = None  # of each, whenever it is asked for

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge by `merge` what `work` gives for every block.

        In each task, then in executors level by level, until at most four are left.
        ``treeReduce`` ends with as many values in the driver as the root of the number of tasks.
        """
        tasks = self.rdd.getNumPartitions()
        rdd, cores = self._whole(), self.rdd.context.defaultParallelism
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
        results = self.look_up(work)._whole()
        found: Iterable[T] = results.toLocalIterator() if large else results.collect()
        return found

    def derive(self, work: Callable[[Any], Any]) -> "SparkPasses":
        """What `work` gives for every block, on the executors' disks."""
        return self.look_up(work).kept()

    def look_up(self, work: Callable[[Any], Any]) -> "SparkPasses":
        """What `work` gives for every block, whenever it is asked for."""
        first = self.becomes
        return SparkPasses(self.rdd, (lambda block: work(first(block))) if first else work)

    def join(self, other: "SparkPasses", merge: Callable[[Any, Any], Any]) -> "SparkPasses":
        """Merge by `merge`, block by block, with `other`; both lie on the same executor."""
        a, b = self.becomes, other.becomes
        if a and b and self.rdd is other.rdd:  # a zip takes a further process for each of both
            return SparkPasses(self.rdd, lambda block: merge(a(block), b(block)))
        return SparkPasses(_kept(self._whole().zip(other._whole()).map(lambda both: merge(*both))))

    def kept(self) -> "SparkPasses":
        """What was looked up, on the executors' disks."""
        return SparkPasses(_kept(self._whole())) if self.becomes else self

    def drop(self) -> None:
        """Give back the executors' disk."""
        if not self.becomes:
            self.rdd.unpersist()

    def _whole(self) -> Any:
        """The RDD of what the blocks become."""
        work = self.becomes
        if work is None:
            return self.rdd

        def run(blocks: Iterator[Any]) -> Iterator[Any]:
            keep_to_processors()
            return map(work, blocks)

        return self.rdd.mapPartitions(run)


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
    copies = copies_of(options.augment)
    options = options.model_copy(update={"augment": augment_of(len(copies))})
    with session_of(session) as spark:
        source = _Source(_context(spark), items, copies, partitions)
        read = source.read(Recipe.of(extractor, options))
        known = settled(extractor, read.everything, options.stated_bits)
        if was_misread(extractor, known, read.everything):
            for misread in read.passes.values():
                misread.drop()
            read = source.read(Recipe.of(known, options))
        everything = read.everything
        groups = groups_of(everything)
        if len(everything.kept) < 2:
            raise FitError(f"{len(everything.kept)} good pictures could be read; 2 are needed.")
        group_of = None if groups is None else dict(zip(everything.kept, groups, strict=True))
        grids = grids_of(read.shapes, extractor.pixels.roi_cells, options.rows_are)
        fitted = [
            _fit_class(n, read, source.places[n], group_of, grids, options) for n in read.passes
        ]
    row_of = {i: row for row, i in enumerate(everything.kept)}
    rows = [
        np.array([row_of[mine[i]] for i in read.parts[name].kept])
        for name, mine in source.places.items()
    ]
    models, held_out = [model for model, _ in fitted], [seen for _, seen in fitted]
    detector = AnomalyDetector(options, known, grids, models, weights, fitted=keys_of(everything))
    return detector, HeldOutScores.joined(held_out, rows), everything


@dataclass(frozen=True, eq=False)
class _Read:
    """The pictures as the executors read them."""

    passes: dict[str, SparkPasses]  # of each class
    parts: dict[str, Extraction]  # what is known of the pictures of each class
    shapes: list[tuple[int, int, int]]  # of the feature maps
    everything: Extraction  # what is known of all pictures


class _Source:
    """Pictures by their class, that executors read."""

    def __init__(
        self, context: Any, items: Sequence[Item], copies: Sequence[Copy], partitions: int | None
    ):
        self._context, self._items = context, items
        self._copies, self._partitions = copies, partitions
        self.places: dict[str, list[int]] = {}  # of each class, among all items
        for i, item in enumerate(items):
            self.places.setdefault(item.category, []).append(i)

    def read(self, recipe: Recipe) -> _Read:
        """Have executors extract the features of all pictures, and keep them."""
        passes, parts, everything = {}, {}, Outcomes()
        shapes: list[tuple[int, int, int]] = []
        for name, mine in self.places.items():
            sources = [self._items[i].path for i in mine]
            rdd = _features(self._context, recipe, sources, self._copies, self._partitions)
            passes[name] = SparkPasses(rdd)
            parts[name], found = _overview(passes[name], len(mine))
            shapes = found or shapes  # none where no picture of a class can be read
            everything.add(parts[name], mine)
        return _Read(passes, parts, shapes, everything.extraction([]))


def _fit_class(
    name: str,
    read: _Read,
    places: Sequence[int],
    group_of: Mapping[int, str] | None,
    grids: Sequence[Grid],
    options: Options,
) -> tuple[ClassModel, HeldOutScores]:
    """Fit and calibrate a class where its features are, and give back their space."""
    passes, part = read.passes[name], read.parts[name]
    kept, folds = part.kept, np.full(len(places), -1)
    try:
        if not kept:
            raise FitError("None of its pictures can be read: replace them.")
        groups = None if group_of is None else [group_of[places[i]] for i in kept]
        n_folds = n_folds_of(len(copies_of(options.augment)) * len(kept))
        deal = Deal.of([part.digests[i] for i in kept], groups, options.seed, n_folds)
        if warning := unequal_folds(deal.folds):
            _logger.warning("The category %s: %s", name, warning)
        folds[kept] = deal.folds
        filled: Passes = SparkPasses(passes.rdd.filter(lambda b: len(b.index) > 0))
        values = sum(math.prod(shape) for shape in read.shapes)
        if 4 * values * len(kept) * len(copies_of(options.augment)) <= MOST_BROUGHT:
            # Few features take one pass to come here, and a dozen to stay where they are.
            plain = filled.each(lambda b: Block(b.index, b.features), large=True)
            filled = LocalPasses(list(plain))
        model, held_out = fit_class_in_passes(name, filled, folds, deal, grids, options)
    except FitError as error:
        raise FitError(f"The category {name} cannot be fitted. {error}") from None
    passes.drop()
    return replace(model, light=np.sort(part.light)), held_out


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
        keep_to_processors()
        listed = list(part)
        for start in range(0, len(listed), IN_BLOCK):
            chunk = listed[start : start + IN_BLOCK]
            extractor = _extractor(shared.value)
            found = extractor.extract([source for _, source in chunk], copies=copies)
            known, at = Outcomes(), [i for i, _ in chunk]
            known.add(found, at)
            index = np.array([at[i] for i in found.kept], dtype=np.int64)
            features = [f.cpu().numpy() for f in found.features]
            yield _Extracted(index, features, known.extraction([]))

    return _kept(context.parallelize(list(enumerate(sources)), partitions).mapPartitions(extract))


def _overview(passes: SparkPasses, n: int) -> tuple[Extraction, list[tuple[int, int, int]]]:
    """What is known of the n pictures beside their features, and the shapes of those."""
    blocks = list(passes.each(lambda b: (b.known, [tuple(f.shape[1:]) for f in b.features])))
    whole = Outcomes()
    for known, _ in blocks:
        whole.add(known, range(n))
    shapes: list[tuple[int, int, int]] = next((s for known, s in blocks if known.kept), [])
    _logger.info(
        "%d pictures extracted in %d partitions", len(whole.kept), passes.rdd.getNumPartitions()
    )
    return whole.extraction([]), shapes


def _merged(
    blocks: Iterator[Any], work: Callable[[Any], T], merge: Callable[[T, T], T]
) -> Iterator[T]:
    keep_to_processors()
    results = map(work, blocks)
    for first in results:
        yield reduce(merge, results, first)


def _kept(rdd: Any) -> Any:
    from pyspark import StorageLevel

    return rdd.persist(StorageLevel.DISK_ONLY)
