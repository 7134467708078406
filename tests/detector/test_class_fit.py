import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.detector.class_fit import finish_class, normaliser_without_fold, recalibrate_class
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.maps import normaliser_of
from dfm_mlflow.errors import FitError

from ..detectors import fit_class, fit_layers

SHAPE = (3, 4, 5)
GRID = Grid(SHAPE, np.ones(SHAPE[1:], bool))
CPU = torch.device("cpu")


def features(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)) @ np.random.default_rng(9).normal(size=(4, 60))
    return torch.from_numpy((rows + rng.normal(size=(n, 60))).astype(np.float32)).view(n, *SHAPE)


def options(**given):
    return Options.parse({"pca_level": "0.9", "layers": "layer1", **given}).resolve()


def fit(x=None, **given):
    return fit_class("a", [features(40) if x is None else x], None, [GRID], options(**given))


def test_each_calibration_score_is_that_of_a_model_without_the_picture_s_fold():
    x, given = features(40), options(normalize="none")
    fitted = fit_layers([x], None, [GRID], given)
    expected = np.empty(40)
    for fold in np.unique(fitted.deal.folds):
        out = fitted.deal.folds == fold
        model = fit_subspace(GRID.rows(x[~torch.from_numpy(out)]).numpy(), 0.9)
        squares = model.residual(GRID.rows(x[torch.from_numpy(out)]).numpy()) ** 2
        maps = squares.reshape(-1, *SHAPE).sum(1)
        expected[out] = maps.reshape(len(maps), -1).max(1)
    given = given.model_copy(update={"aggregate": "max"})
    found = finish_class("a", fitted, [GRID], given).calibration
    assert found.n_folds == len(np.unique(fitted.deal.folds))
    assert found.refit_ratio == pytest.approx(np.mean(fitted.refit_ratios))
    expected *= np.mean(fitted.refit_ratios, axis=0)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected), rtol=1e-4)


@pytest.mark.parametrize("how", ["global", "position", "blend"])
def test_a_held_out_map_is_divided_by_what_the_other_folds_show(how):
    """By the mean of all folds, pictures would hide in it what is odd in them."""
    maps, folds = torch.rand(12, 3, 4) + 0.5, torch.arange(12) % 4
    maps[folds == 2] *= 50
    divisor = normaliser_without_fold(maps, folds.numpy(), how)
    for i in range(12):
        torch.testing.assert_close(divisor[i], normaliser_of(maps[folds != folds[i]], how))
    # and so does a fit
    given = options(normalize=how, aggregate="max")
    x = features(40)
    x[7] *= 5
    fitted = fit_layers([x], None, [GRID], given)
    maps, folds = fitted.maps[0], torch.from_numpy(fitted.deal.folds)
    alone = [normaliser_of(maps[folds != fold], how) for fold in folds]
    expected = np.array([float((m / u).max()) for m, u in zip(maps, alone, strict=True)])
    expected *= np.mean(fitted.refit_ratios, axis=0)
    found = finish_class("a", fitted, [GRID], given).calibration
    np.testing.assert_allclose(found.scores, np.sort(expected), rtol=1e-4)


def test_one_fit_does_for_all_that_differ_in_what_comes_after():
    fitted = fit_layers([features(40)], None, [GRID], options())
    for given in ({"aggregate": "max"}, {"normalize": "global"}, {"score": "nll"}):
        once, again = finish_class("a", fitted, [GRID], options(**given)), fit(**given)
        np.testing.assert_array_equal(once.calibration.scores, again.calibration.scores)
        np.testing.assert_array_equal(once.layers[0].normaliser, again.layers[0].normaliser)
        assert once.map_scale == again.map_scale


def test_groups_are_held_out_together():
    x = features(20)
    twins = torch.cat([x, x])
    given = options(normalize="none")
    alone = fit_class("a", [twins], None, [GRID], given).calibration
    groups = [str(i % 20) for i in range(40)]
    together = fit_class("a", [twins], groups, [GRID], given).calibration
    # a picture whose twin was fitted to looks better than a new one
    assert np.median(alone.scores) < 0.9 * np.median(together.scores)
    with pytest.raises(FitError, match="group"):
        fit_class("a", [x], ["one"] * 20, [GRID], options())


def test_nothing_left_to_reconstruct_is_refused_but_for_a_likelihood():
    few = torch.randn(60, 1, 2, 2, generator=torch.manual_seed(0))
    grid = Grid((1, 2, 2), np.ones((2, 2), bool))
    with pytest.raises(FitError, match="All 4 directions of a layer are kept"):
        fit_class("a", [few], None, [grid], options(pca_level="1.0"))
    model = fit_class("a", [few], None, [grid], options(pca_level="1.0", score="nll"))
    assert np.isfinite(model.calibration.scores).all()


def test_a_recalibration_keeps_scores_and_changes_what_they_are_worth():
    model, given, new = fit(), options(), features(30, seed=1) * 1.5
    scored = [score_class(model.on(CPU), [part], [GRID], given) for part in new.split(7)]
    found = recalibrate_class(model, scored, None, given)
    again = score_class(found.on(CPU), [new], [GRID], given)
    torch.testing.assert_close(again.score, torch.cat([s.score for s in scored]))
    np.testing.assert_allclose(found.calibration.scores, np.sort(again.score.numpy()), rtol=1e-5)
    assert found.calibration.n_folds == 0
    assert found.map_scale > model.map_scale
    whole = recalibrate_class(
        model, [score_class(model.on(CPU), [new], [GRID], given)], None, given
    )
    np.testing.assert_allclose(
        whole.layers[0].leading_coordinates,
        found.layers[0].leading_coordinates,
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(whole.correlation, found.correlation, atol=1e-3)
    assert (np.diff(found.layers[0].leading_coordinates, axis=0) >= 0).all()
    with pytest.raises(FitError, match="0 good pictures are given"):
        recalibrate_class(model, [], None, given)
    bad = score_class(model.on(CPU), [new * float("nan")], [GRID], given)
    with pytest.raises(FitError, match="NaN or infinite"):
        recalibrate_class(model, [bad], None, given)
