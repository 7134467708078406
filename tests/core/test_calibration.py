from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.calibration import (
    Calibration,
    combine_classes,
    images_needed,
    is_anomaly,
    left_out,
)

SCORES = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=60)
GROUPED = st.lists(st.tuples(st.integers(0, 30).map(float), st.sampled_from("abcdefg")), min_size=1)
RATES = [Fraction(1, k) for k in (1000, 100, 20, 10, 8, 4, 3, 2)]


@given(SCORES, st.integers(-1, 31).map(float))
def test_p_value_is_its_definition(held_out, score):
    expected = (1 + sum(h >= score for h in held_out)) / (len(held_out) + 1)
    assert Calibration.of(np.array(held_out)).p_value(np.array([score]))[0] == expected


def by_groups(held_out, score):
    """The definition, in whole numbers."""
    names = sorted({g for _, g in held_out})
    shares = [
        Fraction(
            sum(g == name and h >= score for h, g in held_out), sum(g == name for _, g in held_out)
        )
        for name in names
    ]
    return (1 + sum(shares)) / (len(names) + 1), Fraction(1, len(names) + 1)


@given(GROUPED, st.integers(-1, 31), st.sampled_from(RATES))
def test_p_values_and_thresholds_of_groups_are_their_definition(held_out, score, rate):
    scores, groups = np.array([h for h, _ in held_out]), [g for _, g in held_out]
    c = Calibration.of(scores, groups=groups)
    for s in (float(score), score + 0.5):
        exact, smallest = by_groups(held_out, s)
        assert c.p_value(np.array([s]))[0] == pytest.approx(float(exact), rel=1e-14)
        assert (s > c.threshold(float(rate))) == (exact <= max(rate, smallest))
    assert c.smallest_p_value == float(smallest)
    assert c.effective_fpr(float(rate)) == float(max(rate, smallest))


@given(SCORES, st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9]))
def test_threshold_and_p_value_decide_alike(held_out, fpr):
    c = Calibration.of(np.array(held_out))
    candidates = np.unique([*held_out, *(h + 0.5 for h in held_out), -1.0, 99.0])
    by_p = is_anomaly(c.p_value(candidates), c.effective_fpr(fpr))
    assert np.array_equal(by_p, candidates > c.threshold(fpr))


@given(SCORES, st.integers(2, 5))
def test_copies_that_are_one_group_change_no_p_value(held_out, copies):
    alone = Calibration.of(np.array(held_out))
    repeated = Calibration.of(
        np.repeat(held_out, copies), groups=np.repeat(np.arange(len(held_out)), copies)
    )
    seen = np.linspace(-1, 31, 65)
    np.testing.assert_allclose(repeated.p_value(seen), alone.p_value(seen), rtol=1e-14)
    for fpr in (0.01, 0.05, 0.1, 0.5):
        assert repeated.threshold(fpr) == alone.threshold(fpr)


def test_groups_of_one_image_are_none():
    assert Calibration.of(np.arange(5), groups=list("abcde")).groups is None


@given(GROUPED, st.randoms(use_true_random=False))
def test_order_changes_nothing(held_out, random):
    mixed = held_out.copy()
    random.shuffle(mixed)
    a, b = (
        Calibration.of(np.array([h for h, _ in rows]), groups=[g for _, g in rows])
        for rows in (held_out, mixed)
    )
    assert np.array_equal(a.scores, b.scores)
    assert np.array_equal(a.counted, b.counted)


@pytest.mark.parametrize(("fpr", "n"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3)])
@pytest.mark.parametrize("contamination", [0.0, 0.02, 0.1])
def test_images_needed_are_just_enough(fpr, n, contamination):
    if not contamination:
        assert images_needed(fpr) == n
    n = images_needed(fpr, contamination=contamination)
    enough = Calibration.of(np.arange(n), contamination=contamination)
    assert enough.effective_fpr(fpr) == pytest.approx(fpr)
    fewer = Calibration.of(np.arange(n - 1), contamination=contamination)
    assert fewer.effective_fpr(fpr) > fpr * 1.001


def test_false_positive_rate_keeps_its_promise():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        c = Calibration.of(rng.normal(size=59))
        rates.append(is_anomaly(c.p_value(rng.normal(size=200)), c.effective_fpr(0.1)).mean())
    # exact expectation 6/60; the mean of 400 trials has a standard error of 0.002
    assert np.mean(rates) == pytest.approx(0.1, abs=0.008)


SIZES = {
    "10 groups of 30": [30] * 10,
    "20 groups of 15": [15] * 20,
    "unequal": [1] * 12 + [5] * 8 + [40] * 6 + [100] * 2,
}


def group_rates(sizes, fpr, counts_groups, n_draws=1000):
    """Share of the pictures of a new group that are flagged; groups explain most of it."""
    rng = np.random.default_rng(0)
    groups, flagged = np.repeat(np.arange(len(sizes)), sizes), []
    for _ in range(n_draws):
        scores = 2 * rng.normal(size=len(sizes))[groups] + rng.normal(size=len(groups))
        c = Calibration.of(scores, groups=groups if counts_groups else None)
        new = 2 * rng.normal() + rng.normal(size=20)
        flagged.append(is_anomaly(c.p_value(new), c.effective_fpr(fpr)).mean())
    return np.array(flagged)


@pytest.mark.parametrize("fpr", [0.01, 0.05])
@pytest.mark.parametrize("name", SIZES)
def test_pictures_of_a_new_group_keep_the_promise(name, fpr):
    sizes = SIZES[name]
    rates = group_rates(sizes, fpr, counts_groups=True)
    promised = max(fpr, 1 / (len(sizes) + 1))
    assert rates.mean() <= promised + 3 * rates.std() / np.sqrt(len(rates))


def test_counting_pictures_of_groups_breaks_it():
    rates = group_rates(SIZES["10 groups of 30"], 0.01, counts_groups=False)
    assert rates.mean() > 0.02


def test_a_declared_share_leaves_the_groups_with_the_highest_scores_out():
    scores = [1.0, 9.0, 2.0, 3.0, 8.0, 4.0, 5.0, 0.5]
    c = Calibration.of(np.array(scores), groups=list("aabbccde"), contamination=0.4)
    assert c.n_left_out == 2  # of five: those that hold 9 and 8
    assert c.scores.tolist() == [0.5, 2.0, 3.0, 5.0]
    assert c.n_groups == 3
    alone = Calibration.of(np.arange(100), contamination=0.02)
    assert (alone.n_left_out, alone.scores.max(), alone.n_groups) == (2, 97, 98)
    assert left_out(49, 0.02) == 0
    assert left_out(50, 0.02) == 1


@pytest.mark.parametrize("groups", [None, np.arange(120) // 3])
@pytest.mark.parametrize("fpr", [0.03, 0.1])
def test_it_costs_at_most_its_share_where_nothing_is_dirty(groups, fpr):
    rng = np.random.default_rng(0)
    rates, plain = [], []
    for _ in range(800):
        scores = rng.normal(size=120)
        c = Calibration.of(scores, groups=groups, contamination=0.05)
        rates.append(is_anomaly(c.p_value(rng.normal(size=20)), c.effective_fpr(fpr)).mean())
        plain.append(c.effective_fpr(fpr))
    promised = c.promised_fpr(fpr)
    error = np.std(rates) / np.sqrt(len(rates))
    assert plain[0] < promised <= plain[0] + 0.05
    assert np.mean(rates) <= promised + 3 * error
    if groups is None and fpr == 0.1:  # and the price is really paid
        assert np.mean(rates) > fpr + 0.02


def test_nothing_is_left_out_unasked():
    c = Calibration.of(np.arange(100))
    assert c.n_left_out == 0
    assert c.promised_fpr(0.05) == c.effective_fpr(0.05) == 0.05


def test_estimates_are_told_from_promises():
    scores = np.random.default_rng(0).gamma(3, size=60)
    assert not Calibration.of(scores).is_estimate(0.01)
    tail = Calibration.of(scores, method="gpd")
    assert tail.is_estimate(0.01)
    assert not tail.is_estimate(0.05)
    refit = Calibration.of(scores, refit_ratio=np.full(60, 0.9))
    assert refit.is_estimate(0.05)
    assert refit.refit_ratio == pytest.approx(0.9)
    seen = np.linspace(0, 12, 50)
    assert np.array_equal(refit.cautious_p_value(seen), Calibration.of(scores).p_value(seen))
    assert (refit.p_value(seen) <= refit.cautious_p_value(seen)).all()
    assert refit.threshold(0.05) == pytest.approx(0.9 * Calibration.of(scores).threshold(0.05))


def test_largest_p_value_wins_and_likelihood_breaks_ties():
    p = np.array([[0.2, 0.5], [0.1, 0.1], [0.1, 0.1]])
    likelihood = np.array([[0.0, -9.0], [-5.0, -2.0], [-1.0, -2.0]])
    assert combine_classes(p, likelihood).tolist() == [1, 1, 0]
