import numpy as np

from dfm_mlflow.core.crossfit import assign_folds
from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.tuning.crossfit_levels import crossfit_with


def test_left_out_rows_are_projected_on_what_their_fold_has_not_seen():
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(20, 50)), rng.normal(size=(7, 50))
    folds, theirs = assign_folds(20, 4), np.arange(7) % 4
    found = dict(crossfit_with(x, folds, others, theirs, (0.5, 0.9)))
    for level, both in found.items():
        for fold in range(4):
            model = fit_subspace(x[folds != fold], level)
            for part, rows, mine in ((both.rows, x, folds), (both.others, others, theirs)):
                out = mine == fold
                expected = model.residual(rows[out])
                np.testing.assert_allclose(part.residual()[out], expected, atol=1e-9)
                np.testing.assert_allclose(part.fre[out], model.fre(rows[out]), rtol=1e-9)
                z = model.split(rows[out])[0]
                np.testing.assert_allclose(part.mahalanobis[out], model.mahalanobis(z), rtol=1e-8)
