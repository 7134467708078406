import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.crossfit import assign_folds
from dfm_mlflow.detector.class_fit import fit_class
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.pooling import pool
from dfm_mlflow.tuning import candidates as tuning
from dfm_mlflow.tuning.candidates import (
    GRID,
    SEARCHED,
    Pictures,
    Scored,
    candidates,
    choose,
    score_candidates,
)


def whole(grid):
    return np.ones(grid, dtype=bool)


def pictures(n=24, m=18, seed=0, base="stride:8", **layers):
    rng = np.random.default_rng(seed)
    shapes = layers or {"layer2": (6, 8, 8), "layer3": (9, 4, 4)}
    folds, sources = assign_folds(n, 5), np.arange(m) % n
    good = {
        k: torch.from_numpy(rng.normal(size=(n, *s)).astype(np.float32)) for k, s in shapes.items()
    }
    bad = {
        k: f[sources] + 0.5 * torch.randn(m, *f.shape[1:], generator=torch.manual_seed(seed))
        for k, f in good.items()
    }
    return Pictures(good, bad, folds, folds[sources], base, (64, 64))


def test_alignments_are_tried_and_the_preset_comes_first():
    given = Options.parse({"aggregate": "max"})
    tried = candidates(given)
    assert tried[0] == given.resolve()
    assert len(tried) == len({o.normalize for o in tried}) == len(GRID["normalize"])
    assert {o.model_copy(update={"normalize": "blend"}) for o in tried} == {given.resolve()}
    assert all(o.resolve() == o for o in tried)


@pytest.mark.parametrize("given", [{"normalize": "none"}, {"score": "nll"}])
def test_what_is_given_is_not_searched_and_a_likelihood_has_no_map(given):
    assert candidates(Options.parse(given)) == [Options.parse(given).resolve()]
    assert tuple(GRID) == SEARCHED


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": "global", "aggregate": "top:0.1"},
        {"normalize": "none", "aggregate": "sum"},
        {"layers": "layer3", "pooling": "stride:32"},
        {"score": "nll"},
    ],
)
def test_good_pictures_score_as_in_the_calibration_of_a_model(options, monkeypatch):
    # as cross-fitting gives them, not yet brought to the final model
    monkeypatch.setattr("dfm_mlflow.core.crossfit.refit_ratio", lambda fre, *_: np.ones(len(fre)))
    given = {"layers": "layer2,layer3", "pooling": "stride:16", "image_size": "64"} | options
    resolved = Options.parse(given).resolve()
    shown = pictures()
    (found,) = score_candidates([resolved], [shown], whole)
    features = [pool(shown.good[n], shown.kernel(n, rule)) for n, rule in resolved.feature_maps]
    grids = [Grid(tuple(f.shape[1:]), whole(tuple(f.shape[2:]))) for f in features]
    dealt = Deal(shown.folds, np.arange(len(shown.folds)))
    calibrated = fit_class("a", features, dealt, grids, resolved).calibration.scores
    if resolved.score == "fre":
        np.testing.assert_allclose(np.sort(found.good), np.sort(calibrated), rtol=2e-4)
    else:  # up to a constant, and with another k in each fold
        assert np.corrcoef(np.sort(found.good), np.sort(calibrated))[0, 1] > 0.99


def test_an_unchanged_copy_scores_as_its_source_does():
    same = pictures(m=24)
    same = Pictures(
        same.good,
        {k: f.clone() for k, f in same.good.items()},
        same.folds,
        same.folds,
        same.base,
        same.size,
    )
    tried = [
        o.model_copy(
            update={"layers": o.layers.replace("stride:8", "layer2").replace("stride:16", "layer3")}
        )
        for o in candidates(Options.parse({"image_size": "64"}))
    ]
    for scored in score_candidates(tried, [same], whole):
        np.testing.assert_allclose(scored.defects, scored.good, rtol=1e-3, atol=1e-6)
        # to five digits: where nothing is left to reconstruct, scores are rounding
        unit = 1e-5 * max(scored.good.max(), 1.0)
        good, defects = np.round(scored.good / unit), np.round(scored.defects / unit)
        assert Scored(scored.options, good, defects).auroc == pytest.approx(0.5, abs=0.02)


def test_candidates_of_equal_scores_are_one():
    given = Options.parse({"layers": "layer3", "pooling": "stride:64", "image_size": "64"})
    found = score_candidates(candidates(given), [pictures()], whole)
    # of one cell the mean at its position is that of all positions
    assert not {"global", "position"} <= {s.options.normalize for s in found}


def scored(good, defects, **options):
    scores = np.asarray(good, float), np.asarray(defects, float)
    return Scored(Options.parse(options).resolve(), *scores)


def test_the_preset_stays_unless_another_is_clearly_better():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=200), rng.normal(1, size=200)
    first = scored(good, bad)
    little = scored(good, bad + 0.02, normalize="global")
    much = scored(good, bad + 0.5, normalize="none")
    assert choose([first]).index == 0
    assert choose([first, little]).index == 0
    assert "stays" in choose([first, little]).sentence
    choice = choose([first, little, much])
    assert choice.index == 2
    assert "normalize=none" in choice.sentence
    assert choice.comparison.lower > tuning.LEAST
    assert choose([first, little, much]) == choice


def test_of_nearly_equal_leads_the_smallest_change_is_taken():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=200), rng.normal(1, size=200)
    many = scored(good, bad + 0.5, aggregate="top:0.1", pca_level="0.9", normalize="global")
    one = scored(good, bad + 0.499, aggregate="top:0.1")
    less = scored(good, bad + 0.3, pooling="stride:16")
    assert many.auroc > one.auroc > less.auroc + tuning.ALIKE
    assert choose([scored(good, bad), many, less, one]).index == 3


def test_a_lead_that_rests_on_few_pictures_is_not_enough():
    few = scored([0, 1, 2, 3], [2.5, 2.5, 4])
    better = scored([0, 1, 2, 3], [2.5, 3.5, 4], aggregate="max")
    assert better.auroc - few.auroc > tuning.MARGIN
    assert choose([few, better]).index == 0
