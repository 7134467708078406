"""Fitting every class of a detector: features, labels and groups to models with calibrations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.crossfit import n_folds_of, unequal_folds
from dfm_mlflow.detector.class_fit import fit_class_held_out
from dfm_mlflow.detector.class_model import ClassModel
from dfm_mlflow.detector.grid import Grid, grids_of
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.detector.layer_fit import Deal, check_single
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.copies import augment_of
from dfm_mlflow.network.depths import check_read, settled
from dfm_mlflow.network.extraction import Extraction, keys_of
from dfm_mlflow.network.extractor import Extractor

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FittedClasses:
    """All that a detector is made of, and what its pictures showed while they were held out."""

    options: Options  # with the copies that were fitted
    extractor: Extractor  # of the depth that the pictures have
    grids: list[Grid]
    models: list[ClassModel]
    keys: list[str]  # SHA-256 of each picture
    held_out: HeldOutScores


def fit_classes(
    options: Options,
    extractor: Extractor,
    extraction: Extraction,
    labels: Sequence[str],
    groups: Sequence[str] | None,
) -> FittedClasses:
    """Fit and calibrate each class on its good pictures; their order does not matter."""
    n = len(extraction.kept)
    if n < options.fewest_pictures:
        raise FitError(f"{n} good pictures could be read; {options.fewest_pictures} are needed.")
    known = settled(extractor, extraction, options.stated_bits)
    check_read(extractor, known, extraction)
    shapes = (f.shape[1:] for f in extraction.features)
    grids = grids_of(shapes, extractor.pixels.roi_cells, options.rows_are)
    times = len(extraction.features[0]) // n  # each picture and its copies
    options = options.model_copy(update={"augment": augment_of(times)})
    keys = keys_of(extraction)
    models, held_out, members = [], [], []
    for name in dict.fromkeys(labels):
        mine = sorted((i for i, c in enumerate(labels) if c == name), key=keys.__getitem__)
        try:
            model, seen = _fit_class(name, mine, extraction, keys, groups, grids, options)
        except FitError as error:
            raise FitError(f"The category {name} cannot be fitted. {error}") from None
        models.append(model)
        held_out.append(seen)
        members.append(np.array(mine))
    together = HeldOutScores.joined(held_out, members)
    return FittedClasses(options, known, grids, models, keys, together)


def _fit_class(
    name: str,
    mine: Sequence[int],
    extraction: Extraction,
    keys: Sequence[str],
    groups: Sequence[str] | None,
    grids: Sequence[Grid],
    options: Options,
) -> tuple[ClassModel, HeldOutScores]:
    n, own_groups = len(keys), None if groups is None else [groups[i] for i in mine]
    times = len(extraction.features[0]) // n
    rows = torch.tensor([j * n + i for j in range(times) for i in mine])
    features = [f[rows] for f in extraction.features]
    deal = Deal.of([keys[i] for i in mine], own_groups, options.seed, n_folds_of(len(rows)))
    if len(mine) == 1:
        check_single(grids)
    if warning := unequal_folds(deal.folds):
        _logger.warning("The category %s: %s", name, warning)
    model, held_out = fit_class_held_out(name, features, deal, grids, options)
    if extraction.light:
        model = replace(model, light=np.sort([extraction.light[i] for i in mine]))
    return model, held_out
