"""True against promised rates: benchmarks/tails.py prints more of them."""

import numpy as np
import pytest
from scipy import stats

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.tail import fewest, fit_tail, fit_tail_of_format_1

HEAVY = {
    "normal": (lambda rng, n: rng.normal(size=n), stats.norm.sf),
    "exponential": (lambda rng, n: rng.exponential(size=n), stats.expon.sf),
    "lognormal": (lambda rng, n: rng.lognormal(size=n), stats.lognorm(1).sf),
    "t3": (lambda rng, n: rng.standard_t(3, n), stats.t(3).sf),
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("n", [50, 300])
def test_true_rates_beyond_the_largest_score_are_near_the_promised(name, n):
    draw, above = HEAVY[name]
    rng = np.random.default_rng(0)
    limits = np.empty((400, 3))
    for i in range(len(limits)):
        c = Calibration.of(draw(rng, n), 0, "gpd")
        limits[i] = [c.threshold(part / (n + 1)) for part in (0.1, 0.5, 1)]
    ratio = (above(limits) * (n + 1) / np.array([0.1, 0.5, 1])).mean(axis=0)
    # standard errors of up to 0.05 at 0.5 and 1, and 0.15 at 0.1
    assert ratio[1] <= 1.2
    assert ratio[2] == pytest.approx(1, abs=0.2)
    assert ratio[0] <= 1.6


def test_it_never_touches_what_counting_answers():
    scores = np.random.default_rng(0).lognormal(size=100)
    counted, estimated = Calibration.of(scores), Calibration.of(scores, 0, "gpd")
    seen = np.linspace(-1, scores.max(), 500)
    assert np.array_equal(counted.p_value(seen), estimated.p_value(seen))
    for fpr in (1 / 101, 0.02, 0.1, 0.5):
        assert estimated.threshold(fpr) == counted.threshold(fpr)


@pytest.mark.parametrize("groups", [None, np.arange(90) // 3])
def test_p_values_fall_to_a_tenth_beyond_it(groups):
    scores = np.random.default_rng(1).gamma(2, size=90)
    c = Calibration.of(scores, 0, "gpd", groups)
    beyond = scores.max() + np.array([0, 1e-9, 0.1, 1, 1e9])
    p = c.p_value(beyond)
    assert (np.diff(p) <= 0).all()
    assert p[1] == pytest.approx(1 / (c.n_groups + 1))
    assert p[-1] == c.smallest_p_value == 1 / (c.n_groups + 1) / 10
    for fpr in (c.smallest_p_value * 1.01, c.smallest_p_value * 3):
        limit = c.threshold(fpr)
        assert c.p_value(np.array([limit]))[0] == pytest.approx(fpr)


def test_copies_in_groups_change_nothing():
    scores = np.random.default_rng(2).gamma(2, size=60)
    tail = fit_tail(np.sort(scores))
    groups = np.repeat(np.argsort(np.argsort(scores)), 4)
    order = np.argsort(np.repeat(scores, 4), kind="stable")
    copies = fit_tail(np.repeat(scores, 4)[order], groups[order])
    assert (copies.start, copies.share) == (tail.start, tail.share)
    assert copies.scale == pytest.approx(tail.scale)
    assert copies.shape == pytest.approx(tail.shape)


def test_few_or_equal_scores_have_none():
    for fit in (fit_tail, fit_tail_of_format_1):
        assert fit(np.arange(19.0)) is None
        assert fit(np.arange(20.0)) is not None
        assert fit(np.ones(50)) is None
    assert fewest(0.01) == 20
    assert fewest(0.001) == 99


def test_models_of_format_1_keep_their_tail():
    scores = np.sort(np.random.default_rng(3).gamma(2, size=100))
    old = Calibration(scores, 20, "gpd", rule=1)
    tail = old.tail
    assert tail.start == scores[79]
    assert tail.share == 21 / 101
    # by probability-weighted moments, computed apart
    beyond = scores[80:] - scores[79]
    a0, a1 = beyond.mean(), (beyond * (1 - (np.arange(1, 21) - 0.35) / 20)).mean()
    shape = max(2 - a0 / (a0 - 2 * a1), 0)
    assert tail.shape == pytest.approx(shape)
    assert tail.scale == pytest.approx(2 * a0 * a1 / (a0 - 2 * a1) if shape else a0)
