"""From good pictures alone to the configuration that suits them, and its registered model."""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from dfm_mlflow.config import Options, refuse_spark
from dfm_mlflow.core.crossfit import assign_folds
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.data.chosen import located, pictures_to_fit
from dfm_mlflow.data.groups import groups_of
from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError
from dfm_mlflow.jobs.train import TrainResult, fit_and_register
from dfm_mlflow.network.backbones import layer_names
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.extraction import keys_of
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.pooling import base_rule
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.run import as_given, data_name, log_parameters, run_of
from dfm_mlflow.tuning.candidates import (
    SEARCHED,
    Choice,
    Pictures,
    Scored,
    candidates,
    choose,
    layers_of,
    score_candidates,
)
from dfm_mlflow.tuning.drawn import network_inputs, regions_of
from dfm_mlflow.tuning.sheet import write_sheet
from dfm_mlflow.tuning.synthetic import Plan, draw_all, plans

MOST_GOOD = 300  # pictures of a class that the search looks at
N_DEFECTS = 336  # of a class: 8 of each kind, size and strength
_FEWEST = 20
_MEMORY = 1 << 30  # bytes of features, of good pictures and of defects each
_FOLDS = 10
_COMPARED = (
    *("layers", "pooling", "pca_level", "aggregate", *SEARCHED),
    *("preset", "backbone", "image_size", "score"),
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneResult:
    """What a search left behind."""

    trained: TrainResult  # of the chosen configuration, fitted to all good pictures
    choice: Choice
    scored: list[Scored]  # every candidate; the first is the preset's own configuration


@dataclass(frozen=True, eq=False)
class Search:
    """What a search found, before anything is logged."""

    scored: list[Scored]
    choice: Choice
    plans: list[Plan]  # of the defects, in the order of their scores
    examples: list[tuple[Plan, np.ndarray, np.ndarray]]  # one of each kind, size and strength
    seconds: float


def tune(options: Options, *, experiment: str = AUTO) -> TuneResult:
    """Choose a configuration on synthetic defects, and train with it, in one run with children.

    Test pictures are evaluated on by the chosen configuration, after the choice.
    """
    refuse_spark(options.engine, "tune")
    options.resolve()  # refused before anybody looks at the data
    asked, options = as_given(options), located(options)
    catalog = pictures_to_fit(options)
    found = search(options, catalog.train)
    chosen = found.scored[found.choice.index].options
    extractor, weights, resolved = build_extractor(chosen, catalog.train)
    data = data_name(resolved.data, resolved.category)
    name = "-".join(filter(None, ("tune", resolved.category, resolved.backbone, data)))
    tags = {"dfm.job": "tune", "dfm.category": resolved.category, "dfm.preset": resolved.preset}
    with run_of(name, tags, experiment) as run:
        run_id = run.info.run_id
        log_parameters(run_id, asked)
        _log_candidates(run, found)
        trained = fit_and_register(run_id, name, tags, resolved, catalog, extractor, weights)
        mlflow.set_tag("dfm.choice", found.choice.sentence)
        mlflow.log_metrics(
            {
                "synthetic_auroc": found.scored[found.choice.index].auroc,
                "synthetic_auroc_preset": found.scored[0].auroc,
                "n_candidates": len(found.scored),
                "tune_seconds": found.seconds,
            }
        )
    if extractor.cache:
        extractor.cache.trim()
    trained = replace(trained, sentences=[found.choice.sentence, *trained.sentences])
    return TuneResult(trained, found.choice, found.scored)


def search(options: Options, items: Sequence[Item]) -> Search:
    """Score every candidate on good pictures and synthetic defects, and choose one."""
    began = time.perf_counter()
    tried = _with_names(candidates(options))
    base = base_rule({rule for o in tried for _, rule in o.feature_maps})
    widest = tried[0].model_copy(
        update={"layers": ",".join(layers_of(tried)), "pooling": str(base)}
    )
    extractor, _, _ = build_extractor(widest, items)
    classes, dealt = [], []
    examples: list[tuple[Plan, np.ndarray, np.ndarray]] = []
    for category in dict.fromkeys(i.category for i in items):
        mine = [i for i in items if i.category == category]
        pictures, own, shown = _draw(extractor, base, mine, options)
        classes.append(pictures)
        dealt += own
        examples = examples or shown
    scored = score_candidates(tried, classes, extractor.pixels.roi_cells)
    choice = choose(scored, options.seed)
    _logger.info(choice.sentence)
    return Search(scored, choice, dealt, examples, time.perf_counter() - began)


def _with_names(tried: list[Options]) -> list[Options]:
    """Give layers, which all candidates share, their names in the backbone."""
    first = tried[0]
    names = layer_names(first.backbone, first.layer_names, first.network_size)
    return [o.model_copy(update={"layers": ",".join(names)}) for o in tried]


def _draw(
    extractor: Extractor, base: int | str, items: list[Item], options: Options
) -> tuple[Pictures, list[Plan], list[tuple[Plan, np.ndarray, np.ndarray]]]:
    """Extract good pictures of one class, and the same with defects drawn into them."""
    rng = np.random.default_rng(options.seed)
    order = [items[i] for i in rng.permutation(len(items))]
    most = _affordable(extractor, order)
    order = order[: min(most, MOST_GOOD)]
    good = extractor.extract([i.path for i in order], progress="good pictures")
    order = [order[i] for i in good.kept]
    if len(order) < 2:
        raise DataError(
            f"{len(order)} good pictures of {items[0].category} could be read, and a search needs "
            "at least 2: replace the others."
        )
    groups = groups_of(options.group_by, order)
    keys = keys_of(good)
    folds = assign_folds(len(order), _FOLDS, groups=groups, keys=keys, seed=options.seed)
    dealt = plans(min(most, N_DEFECTS), options.seed)
    sources = np.resize(np.arange(len(order)), len(dealt))
    inside = regions_of(extractor, good.sizes)
    drawn = list(
        draw_all(
            network_inputs(extractor, [order[i] for i in sources]),
            dealt,
            options.seed,
            [inside[i] for i in sources],
        )
    )
    defects = extractor.extract([picture for picture, _ in drawn], progress="synthetic defects")
    layers = extractor.backbone.layers
    pictures = Pictures(
        dict(zip(layers, good.features, strict=True)),
        dict(zip(layers, defects.features, strict=True)),
        folds,
        folds[sources],
        base,
        extractor.size,
    )
    shown = {plan: (plan, *pair) for plan, pair in zip(dealt, drawn, strict=True)}
    return pictures, dealt, list(shown.values())


def _affordable(extractor: Extractor, items: Sequence[Item]) -> int:
    """How many pictures' features the search may keep in memory."""
    first = extractor.extract([i.path for i in items[:5]])
    if not first.kept:
        return _FEWEST
    size = sum(f[0].numel() * f.element_size() for f in first.features)
    return max(_FEWEST, _MEMORY // size)


# -- logging ---------------------------------------------------------------------------------------


def candidate_table(found: Search) -> pd.DataFrame:
    """List the candidates that a search `found`, best first.

    Beside their options stands their synthetic AUROC by kind, size and strength of the defects.
    """
    rows = []
    for i, scored in enumerate(found.scored):
        row = {name: getattr(scored.options, name) for name in SEARCHED}
        row |= {"chosen": i == found.choice.index, "preset": i == 0}
        rows.append(row | _aurocs(scored, found.plans))
    table = pd.DataFrame(rows)
    return table.sort_values("synthetic_auroc", ascending=False, kind="stable")


def _aurocs(scored: Scored, dealt: Sequence[Plan]) -> dict[str, float]:
    values = {"synthetic_auroc": scored.auroc}
    for part in ("kind", "size", "strength"):
        for name in dict.fromkeys(getattr(p, part) for p in dealt):
            mine = scored.defects[[getattr(p, part) == name for p in dealt]]
            defective = np.repeat([False, True], [len(scored.good), len(mine)])
            area = auroc(defective, np.concatenate([scored.good, mine]))
            values[f"synthetic_auroc/{name}"] = float(area or 0)
    return values


def _log_candidates(run: mlflow.ActiveRun, found: Search) -> None:
    table = candidate_table(found)
    mlflow.log_table(table.reset_index(drop=True), "candidates.json")
    mlflow.log_text(table.to_csv(index=False), "candidates.csv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic_defects.png"
        write_sheet(path, found.examples)
        mlflow.log_artifact(str(path))
    client, now = MlflowClient(), int(time.time() * 1000)
    for place, (i, row) in enumerate(table.iterrows(), 1):
        options = found.scored[cast(int, i)].options
        name = ", ".join(getattr(options, field) for field in SEARCHED)
        tags = {
            MLFLOW_PARENT_RUN_ID: run.info.run_id,
            MLFLOW_RUN_NAME: name,
            "dfm.job": "tune-candidate",
            "dfm.category": options.category,
            "dfm.place": str(place),
            "dfm.chosen": str(bool(row["chosen"])).lower(),
        }
        child = client.create_run(run.info.experiment_id, tags=tags).info.run_id
        metrics = [
            Metric(str(key), float(value), now, 0)
            for key, value in row.items()
            if str(key).startswith("synthetic_auroc")
        ]
        params = [Param(f"resolved_{key}", str(getattr(options, key))) for key in _COMPARED]
        client.log_batch(child, metrics=metrics, params=params)
        client.set_terminated(child)
