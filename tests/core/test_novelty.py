import numpy as np
import pytest

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.novelty import seems_fitted


def p_values(rng, n, m, share=0.0, lower=0.0):
    """Of m pictures, a share of which scores far below n held-out ones and the rest alike."""
    fitted = round(share * m)
    scores = np.r_[rng.normal(-lower, 1, m - fitted), rng.normal(-9, 1, fitted)]
    return Calibration.of(rng.normal(size=n)).p_value(scores)


def test_new_pictures_are_called_fitted_more_rarely_than_one_in_a_thousand():
    rng = np.random.default_rng(0)
    for n, m in ((20, 10), (60, 60), (300, 100)):
        called = [seems_fitted(p_values(rng, n, m), n) is not None for _ in range(2000)]
        assert sum(called) <= 6  # of 2 expected at most; 7 or more have a chance of 0.5 %


@pytest.mark.parametrize("share", [1.0, 0.95, 0.9, 0.75])
def test_fitted_ones_are_noticed_with_new_ones_among_them(share):
    rng = np.random.default_rng(1)
    for n, m in ((60, 20), (300, 100)):
        found = [seems_fitted(p_values(rng, n, m, share), n) for _ in range(200)]
        assert all(f is not None for f in found)
        assert np.median(found) == pytest.approx(share, abs=0.06)


def test_a_few_fitted_ones_and_scores_a_little_lower_are_left_to_the_digests():
    rng = np.random.default_rng(2)
    assert seems_fitted(p_values(rng, 1000, 1000, share=0.1), 1000) is None
    assert seems_fitted(p_values(rng, 1000, 1000, lower=0.3), 1000) is None
    assert seems_fitted(np.empty(0), 30) is None
    assert seems_fitted(np.ones(2), 30) is None  # two say nothing
