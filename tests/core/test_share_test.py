import itertools
import math

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import beta

from dfm_mlflow.core.share_test import LIFTS, ShareTest


def test_evidence_is_one_in_the_mean_over_everything_that_can_happen():
    """Polya's urn: the e-process is an exact martingale of the ranks."""
    n, pictures = 9, 6
    total, weights = 0.0, 0.0
    for path in itertools.product([True, False], repeat=pictures):
        test = ShareTest(n, (2,), 0.01)
        test._share = np.zeros(1)  # without the floor, which only ever lowers evidence
        a, b, probability = 2, 8, 1.0
        for hit in path:
            probability *= (a if hit else b) / (a + b)
            a, b = a + hit, b + (not hit)
            test.update(np.array([1 if hit else 5]))
        total += probability * float(test.evidence)
        weights += probability
    assert weights == pytest.approx(1)
    assert total == pytest.approx(1, abs=1e-12)


def test_with_the_floor_it_is_no_more_than_that():
    n, pictures = 9, 6
    total = 0.0
    for path in itertools.product([True, False], repeat=pictures):
        test = ShareTest(n, (2,), 0.01)
        a, b, probability = 2, 8, 1.0
        for hit in path:
            probability *= (a if hit else b) / (a + b)
            a, b = a + hit, b + (not hit)
            test.update(np.array([1 if hit else 5]))
        total += probability * float(test.evidence)
    assert 0.8 < total <= 1


def test_half_of_it_is_the_posterior_of_a_share_above_the_limit():
    rng, n, a = np.random.default_rng(0), 99, 5
    test = ShareTest(n, (a,), 0.01)
    hits = rng.random(500) < 0.08
    test.update(np.where(hits, 1, 50))
    law = beta(a + hits.sum(), n + 1 - a + (~hits).sum())
    prior = beta(a, n + 1 - a).sf(test.limit[0])
    change = test._bets.mean() + 1 / np.log2(502)
    expected = 0.5 * law.sf(test.limit[0]) / prior + 0.5 * change
    assert float(test.evidence) == pytest.approx(expected, rel=1e-9)
    assert prior == pytest.approx(0.4 * 0.01)


def test_the_other_half_are_likelihood_ratios_from_every_start():
    rng, n, a = np.random.default_rng(1), 99, 5
    test = ShareTest(n, (a,), 0.01)
    hits = rng.random(40) < 0.3
    test.update(np.where(hits, 1, 50))
    odds = a / (n + 1 - a) * np.array(LIFTS)
    raised = odds / (1 + odds)
    k, ratios = 0, []
    for t, hit in enumerate(hits):
        base_rate = max(a / (n + 1), (a + k) / (n + 1 + t))
        ratio = raised / base_rate if hit else (1 - raised) / (1 - base_rate)
        ratios.append(np.where(raised > base_rate, ratio, 1))
        k += hit
    starts = [1 / math.log2(s + 2) - 1 / math.log2(s + 3) for s in range(40)]
    expected = sum(w * np.prod(ratios[s:], axis=0) for s, w in enumerate(starts))
    np.testing.assert_allclose(test._bets[0], expected, rtol=1e-9)


def test_a_share_above_the_limit_is_sure_to_be_found_from_the_first_picture():
    test = ShareTest(50, (1,), 0.01)
    share = float(test.limit[0]) * 1.15
    hits = np.random.default_rng(0).random(20_000) < share
    test.update(np.where(hits, 1, 9))
    assert test.alarm


def test_the_law_at_its_start_is_that_of_the_calibration():
    test = ShareTest(300, (3,), 0.005)
    expected = 3 * math.log(test.limit[0]) + 298 * math.log1p(-test.limit[0]) - betaln(3, 298)
    assert test._log_density[0] == pytest.approx(expected)
