"""The likeliest class is found without scoring the others, and nothing of a picture changes."""

import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.detector.category import candidates, in_place
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.decision import decide
from dfm_mlflow.detector.grid import Grid

from ..detectors import fit_class

SHAPE, CPU = (12, 5, 5), torch.device("cpu")


def draw(seed, n, centre):
    """Pictures around a centre, with a few directions of their own."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(SHAPE))
    structure = np.random.default_rng(int(centre * 100)).normal(size=(5, d))
    rows = centre + rng.normal(size=(n, 5)) @ structure + 0.2 * rng.normal(size=(n, d))
    return torch.from_numpy(rows.astype(np.float32)).view(n, *SHAPE)


@pytest.fixture(scope="module", params=["picture", "cell"])
def fitted(request):
    given = Options.parse(
        {"layers": "layer2", "pca_level": "0.9", "subspace": request.param}
    ).resolve()
    grids = [Grid(SHAPE, np.ones(SHAPE[1:], bool), rows_are=request.param)]
    centres = (0.0, 0.3, 0.6, 0.9)
    models = [
        fit_class(str(c), [draw(i, 30, c)], None, grids, given) for i, c in enumerate(centres)
    ]
    return [m.on(CPU) for m in models], grids, given, centres


def test_likeliest_is_among_few_candidates_and_rows_are_those_of_scoring_all(fitted):
    models, grids, given, centres = fitted
    new = torch.cat([draw(50 + i, 12, c) for i, c in enumerate(centres)])
    whole = [score_class(m, [new], grids, given) for m in models]
    possible = candidates(models, [new], grids)
    nll = torch.stack([s.nll for s in whole], dim=1)
    assert possible.gather(1, nll.argmin(1, keepdim=True)).all()
    assert possible.sum() < 1.2 * len(new)  # nearly always one of four
    few = [
        in_place(score_class(m, [new[own]], grids, given) if own.any() else None, own)
        for m, own in zip(models, possible.T, strict=True)
    ]
    (rows, best), (expected, chosen) = (decide(models, s, 0.1, None) for s in (few, whole))
    assert best.tolist() == chosen.tolist()
    for name in ("anomaly_score", "fre", "nll"):
        found, known = ([row[name] for row in one] for one in (rows, expected))
        np.testing.assert_allclose(found, known, rtol=2e-6)
    assert [r["p_value"] for r in rows] == [r["p_value"] for r in expected]
    for i, j in enumerate(best):
        torch.testing.assert_close(few[j].maps[i], whole[j].maps[i])
        torch.testing.assert_close(
            few[j].leading_coordinates[0][i], whole[j].leading_coordinates[0][i]
        )


def test_of_equal_classes_none_is_ruled_out_before_the_other(fitted):
    models, grids, _, _ = fitted
    twice = [models[0], models[0], models[1]]
    possible = candidates(twice, [draw(9, 12, 0.0)], grids)
    assert torch.equal(possible[:, 0], possible[:, 1])
    assert possible[:, 0].sum() > 6


def test_what_is_not_finite_is_scored_under_all(fitted):
    models, grids, _, _ = fitted
    assert candidates(models, [draw(9, 2, 0.0) * torch.nan], grids).all()
