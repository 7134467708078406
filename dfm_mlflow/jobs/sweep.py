"""Every configuration of a grid on every category: one parent, one child each, shared work.

Pictures go through the network once for all configurations that share it; a subspace is fitted
once for all that share its layers, pooling and PCA level. Children hold metrics and parameters and
no model.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlflow
import pandas as pd
import torch

import dfm_mlflow
from dfm_mlflow.config import Options, SweepOptions
from dfm_mlflow.core.crossfit import n_folds_of
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import located, pictures_to_fit
from dfm_mlflow.data.groups import groups_of
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import CHUNK, AnomalyDetector
from dfm_mlflow.detector.augment import extract_to_fit
from dfm_mlflow.detector.class_fit import finish_class
from dfm_mlflow.detector.class_model import LayerModel, RawScores, finish_scores, raw_scores
from dfm_mlflow.detector.decision import decide
from dfm_mlflow.detector.grid import Grid, at_once, grids_of
from dfm_mlflow.detector.layer_fit import Deal, fit_layers
from dfm_mlflow.errors import DfmError, SweepError
from dfm_mlflow.jobs.fit import kept_items
from dfm_mlflow.jobs.train import facts_of
from dfm_mlflow.network.backbones import layer_names
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.copies import COPIES
from dfm_mlflow.network.extraction import Extraction, keys_of
from dfm_mlflow.network.pooling import base_rule, kernel_of, pool
from dfm_mlflow.report.sweep import as_markdown, write_page
from dfm_mlflow.scores.copies import find_copies
from dfm_mlflow.scores.evaluation import image_metrics, metric_name
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.outage import outage
from dfm_mlflow.tracking.run import as_given, log_dataset, log_parameters, run_of
from dfm_mlflow.tracking.sweep_children import PARENT, SweepChildren, table_of

TABLES = ("image_auroc", "image_f1_max")
# Configurations that differ in nothing else share the network's work, and the fit.
_NETWORK = (
    "backbone",
    "image_size",
    "resize",
    "weights",
    "roi",
    "tile",
    "device",
    "precision",
    "augment",
    "max_megapixels",
    "bits",
    "float_range",
)
_FIT = ("layers", "pooling", "subspace", "pca_level", "seed", "group_by")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    run_id: str  # of the parent
    # By metric: a row a configuration, the average first and then a column a category.
    tables: dict[str, pd.DataFrame]
    failures: dict[str, str]  # why categories are not there
    n_resumed: int  # children that an interrupted sweep had finished

    def summary(self) -> str:
        """Say in Markdown what was found."""
        parts = [f"{name}\n\n{as_markdown(table)}" for name, table in self.tables.items()]
        parts += [f"{category} failed: {why}" for category, why in self.failures.items()]
        return "\n\n".join([*parts, f"run {self.run_id}"])

    def error(self) -> SweepError | None:
        """Name the categories that failed; None where there are none."""
        if not self.failures:
            return None
        named = "; ".join(f"{category}: {why}" for category, why in self.failures.items())
        return SweepError(
            f"{len(self.failures)} of the sweep's categories failed ({named}): put them right and "
            f"run the sweep again, which keeps what run {self.run_id} has finished."
        )


def sweep(options: SweepOptions, *, experiment: str = AUTO) -> SweepResult:
    """Evaluate every configuration on every category, in one run with a child for each.

    An unfinished sweep of the same options is continued: its finished children become children
    of this run, if their pictures are the same.
    """
    asked = as_given(options)
    if options.categories == "auto":
        options = located(options)  # type: ignore[type-var]  # it has every field of Options
    categories, configurations = options.category_names, options.configurations()
    tags = {"dfm.job": "sweep", PARENT: _digest(options.model_dump(exclude={"cache"}))}
    names = ",".join(categories)
    with run_of(f"sweep-{names}"[:250], tags, experiment, names[:250]) as run:
        log_parameters(run.info.run_id, asked)
        mlflow.set_tags(tags)  # in a run that was taken over, too
        parameters = {f"resolved_{k}": v for k, v in options.model_dump().items()}
        log_parameters(run.info.run_id, {k: v for k, v in parameters.items() if v != "auto"})
        children = SweepChildren(run, tags[PARENT])
        found, failures = {}, {}
        for category in categories:
            own = [options.options(category, c) for c in configurations]
            try:
                for i, metrics in _sweep_category(own, configurations, children):
                    found[category, i] = metrics
            except Exception as error:
                if outage(error):
                    raise
                failures[category] = _words(error)
                children.fail(
                    own, configurations, failures[category], {i for c, i in found if c == category}
                )
        tables = {name: table_of(found, categories, configurations, name) for name in TABLES}
        result = SweepResult(run.info.run_id, tables, failures, children.n_resumed)
        _log_tables(result)
        active = mlflow.active_run()
        if failures and active and active.info.run_id == run.info.run_id:
            mlflow.set_tag("dfm.failed", "; ".join(f"{c}: {w}" for c, w in failures.items())[:5000])
            mlflow.end_run("FAILED")
    return result


def _sweep_category(
    given: Sequence[Options], configurations: Sequence[Mapping[str, str]], children: SweepChildren
) -> Iterator[tuple[int, dict[str, float]]]:
    """Give the metrics of each configuration of one category, and log its child."""
    resolved = [o.resolve() for o in given]
    catalog = pictures_to_fit(resolved[0], of_several=True)
    dataset_logged = False
    waiting = []
    for i, options in enumerate(resolved):
        known = children.finished(_child_key(options, catalog))
        if known is None:
            waiting.append(i)
        else:
            yield i, known
    for _, same in itertools.groupby(
        sorted(waiting, key=lambda i: _part(resolved[i], _NETWORK)),
        key=lambda i: _part(resolved[i], _NETWORK),
    ):
        numbers = list(same)
        if not dataset_logged:
            log_dataset(catalog, "sweep")
            dataset_logged = True
        shared = _Shared([resolved[i] for i in numbers], catalog)
        for i, options, metrics in shared.evaluate(numbers):
            children.log(options, configurations[i], _child_key(resolved[i], catalog), metrics)
            yield i, metrics


class _Shared:
    """Pictures of one category that went through one network, for several configurations."""

    def __init__(self, options: Sequence[Options], catalog: Catalog):
        self._catalog, first = catalog, options[0]
        names = {
            n: layer_names(first.backbone, (n,), first.network_size)[0]
            for n in dict.fromkeys(n for o in options for n in o.layer_names)
        }
        self._options = [
            o.model_copy(update={"layers": ",".join(names[n] for n in o.layer_names)})
            for o in options
        ]
        self._base = base_rule({rule for o in options for _, rule in o.feature_maps})
        widest = {"layers": ",".join(dict.fromkeys(names.values())), "pooling": str(self._base)}
        widest |= {"subspace": first.rows_are[0]}  # one map a layer
        self._extractor, self._weights, about = build_extractor(
            first.model_copy(update=widest), catalog.train
        )
        paths, labels = [i.path for i in catalog.train], [i.category for i in catalog.train]
        self._extractor, train, trial = extract_to_fit(
            self._extractor, paths, labels, about, progress=catalog.name
        )
        self._about = {
            "device": about.device,
            "precision": about.precision,
            "augment": trial.augment,
        }
        items, keys = kept_items(catalog.train, train), keys_of(train)
        order = sorted(range(len(keys)), key=keys.__getitem__)  # as a training fits them
        self._items, self._keys = [items[i] for i in order], [keys[i] for i in order]
        times, n = len(COPIES[trial.augment]), len(order)
        rows = torch.tensor([j * n + i for j in range(times) for i in order])
        train = replace(train, features=[f[rows] for f in train.features])
        self._n_bad = len(train.errors)
        test = self._extractor.extract([i.path for i in catalog.test], progress=catalog.name)
        self._train, self._test = train, test
        if self._extractor.cache:
            self._extractor.cache.trim()

    def evaluate(self, numbers: Sequence[int]) -> Iterator[tuple[int, Options, dict[str, float]]]:
        """Give the number of each configuration, its options, and its metrics."""
        pairs = sorted(zip(numbers, self._options, strict=True), key=lambda p: _part(p[1], _FIT))
        for _, same in itertools.groupby(pairs, key=lambda p: _part(p[1], _FIT)):
            yield from self._with_one_fit(list(same))

    def _with_one_fit(
        self, pairs: list[tuple[int, Options]]
    ) -> Iterator[tuple[int, Options, dict[str, float]]]:
        first = pairs[0][1]
        features = self._features(self._train, first)
        shapes = [f.shape[1:] for f in features]
        grids = grids_of(shapes, self._extractor.pixels.roi_cells, first.rows_are)
        groups = groups_of(first.group_by, self._items)
        deal = Deal.of(self._keys, groups, first.seed, n_folds_of(len(features[0])))
        fitted = fit_layers(features, deal, grids, first)
        raw = None
        for number, options in pairs:
            options = options.model_copy(update=self._about)
            model = finish_class(options.category, fitted, grids, options)
            detector = AnomalyDetector(options, self._extractor, grids, [model], self._weights)
            if raw is None and self._test.kept:
                layers = [layer.on(self._extractor.device) for layer in fitted.layers]
                raw = self._raw(layers, self._features(self._test, first), grids)
            table = self._score(detector, raw)
            metrics = image_metrics(table)
            metrics |= facts_of(detector, table, len(self._items), self._n_bad)
            metrics["n_unused_files"] = float(self._catalog.account.n_unused)
            yield number, options, metrics

    def _features(self, extraction: Extraction, options: Options) -> list[torch.Tensor]:
        have = dict(zip(self._extractor.backbone.layers, extraction.features, strict=True))
        return [
            pool(have[n], kernel_of(rule, self._base, have[n], options.size))
            for n, rule in options.feature_maps
            if n in have
        ]

    @staticmethod
    @torch.inference_mode()
    def _raw(
        layers: Sequence[LayerModel], features: Sequence[torch.Tensor], grids: Sequence[Grid]
    ) -> RawScores:
        step = at_once(grids, CHUNK)
        parts = [
            raw_scores(layers, [f[i : i + step] for f in features], grids)
            for i in range(0, len(features[0]), step)
        ]
        return RawScores(
            [torch.cat([p.maps[j] for p in parts]) for j in range(len(layers))],
            torch.cat([p.fre for p in parts]),
            torch.cat([p.nll for p in parts]),
            [torch.cat([p.leading_coordinates[j] for p in parts]) for j in range(len(layers))],
        )

    def _score(self, detector: AnomalyDetector, raw: RawScores | None) -> pd.DataFrame:
        """Make the table of :func:`~dfm_mlflow.scores.evaluation.score_items`, without paths."""
        items, kept = self._catalog.test, self._test.kept
        errors = self._test.errors
        rows: list[dict[str, Any]] = [{"error": errors.get(i)} for i in range(len(items))]
        if raw is not None:
            model = detector.classes[0].on(self._extractor.device)
            scored = finish_scores(model, raw, detector.grids, detector.options)
            decided, _ = decide(detector.classes, [scored], detector.options.fpr, None)
            for i, row in zip(kept, decided, strict=True):
                rows[i] = row
        about = {
            "category": [i.category for i in items],
            "label": [i.label for i in items],
            "defective": [i.label != GOOD for i in items],
        }
        columns = ("anomaly_score", "is_anomaly", "fre", "nll", "error")
        table = pd.DataFrame(about | {c: [r.get(c) for r in rows] for c in columns})
        if detector.options.test_copies == "leave_out":
            left_out = find_copies(self._catalog).left_out
            table["left_out"] = [left_out.get(str(i.path)) for i in items]
        return table


def _part(options: Options, names: Sequence[str]) -> str:
    values = [str(getattr(options, name)) for name in names]
    if names is _NETWORK and options.weights == "random":
        values.append(str(options.seed))
    return "\0".join(values)


def _child_key(options: Options, catalog: Catalog) -> str:
    return _digest(
        [options.model_dump(exclude={"cache", "data"}), catalog.digest, dfm_mlflow.__version__]
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _words(error: Exception) -> str:
    if isinstance(error, DfmError):
        return str(error)
    _logger.error("Unexpected", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _log_tables(result: SweepResult) -> None:
    for name, table in result.tables.items():
        mlflow.log_text(table.to_csv(), f"{name}.csv")
        averages = table["Avg"].dropna()
        metrics = {f"mean_{name}/{metric_name(str(k))}"[:250]: v for k, v in averages.items()}
        if len(averages):
            metrics[f"best_mean_{name}"] = float(averages.max())
        mlflow.log_metrics(metrics)
    mlflow.log_table(result.tables[TABLES[0]].reset_index(), f"{TABLES[0]}.json")
    mlflow.log_text(result.summary(), "sweep.md")
    mlflow.log_text(write_page(result.tables, result.failures), "report/report.html")
    mlflow.log_metrics({"n_resumed": result.n_resumed, "n_failed": len(result.failures)})
