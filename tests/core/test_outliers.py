import numpy as np
import pytest

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.outliers import RARE, find_setter, gap_by_chance, held_out_p_values


def test_p_values_without_groups_are_shares_and_ties_count():
    np.testing.assert_allclose(held_out_p_values(np.array([3.0, 1, 2, 2])), [0.25, 1, 0.75, 0.75])


def test_p_values_count_each_other_group_by_its_share():
    rng = np.random.default_rng(0)
    scores, groups = rng.normal(size=60).round(1), rng.integers(0, 12, 60)
    expected = [
        (1 + sum((scores[groups == g] >= s).mean() for g in set(groups) - {groups[i]}))
        / len(set(groups))
        for i, s in enumerate(scores)
    ]
    np.testing.assert_allclose(held_out_p_values(scores, groups), expected)
    # they are those of a calibration that never saw the group
    rest = Calibration.of(scores[groups != groups[0]], groups=groups[groups != groups[0]])
    assert held_out_p_values(scores, groups)[0] == pytest.approx(rest.p_value(scores[:1])[0])


def test_p_values_of_whole_groups_are_uniform():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 5)
    found = [
        held_out_p_values(rng.normal(size=20)[groups] + 0.01 * rng.normal(size=100), groups)[7]
        for _ in range(1000)
    ]
    for level in (0.1, 0.3, 0.7):
        assert np.mean(np.array(found) <= level + 1e-9) == pytest.approx(level, abs=0.05)


@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("draw", ["exponential", "gamma", "lognormal", "pareto"])
def test_one_of_exchangeable_images_is_seldom_called_apart(n, draw):
    rng = np.random.default_rng(n)
    tails = {
        "exponential": lambda: 1 + rng.exponential(size=n),
        "gamma": lambda: rng.gamma(20, size=n),
        "lognormal": lambda: np.exp(0.3 * rng.normal(size=n)),
        "pareto": lambda: 1 + rng.pareto(5, size=n),
    }
    rate = np.mean([gap_by_chance(tails[draw]()) <= RARE for _ in range(1000)])
    assert rate <= RARE + 0.02


def test_the_image_that_sets_the_threshold_is_named_with_the_threshold_without_it():
    scores = np.exp(0.2 * np.random.default_rng(2).normal(size=60))
    scores[41] = 9.0
    found = find_setter(scores, None, 0.01)
    assert found.index == 41
    assert found.apart
    assert found.threshold == 9.0
    assert found.without == np.sort(scores)[-2]
    # at a rate where the third largest score is the threshold no image sets it alone
    assert not find_setter(scores, None, 0.05).apart


def test_copies_of_the_odd_image_do_not_hide_it():
    scores = np.exp(0.2 * np.random.default_rng(2).normal(size=60))
    scores[[7, 41]] = 9.0, 9.1
    groups = np.arange(60)
    groups[7] = groups[41]
    found = find_setter(scores, groups, 0.01)
    assert found.apart
    assert found.without == np.sort(scores)[-3]


def test_few_or_equal_scores_say_nothing():
    assert find_setter(np.array([1.0, 2.0, 9.0]), None, 0.1) is None
    assert gap_by_chance(np.ones(40)) == 1
    assert gap_by_chance(np.r_[np.ones(39), 2]) == 0
    assert gap_by_chance(np.r_[-np.ones(39), 0.0]) == 0  # likelihoods may be negative


@pytest.mark.parametrize("n", [10, 100])
def test_the_chance_of_a_gap_is_exact_in_an_exponential_tail(n):
    rng = np.random.default_rng(n)
    found = np.array([gap_by_chance(np.exp(1e-3 + rng.exponential(size=n))) for _ in range(4000)])
    for level in (0.01, 0.05, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level / 4000))


def test_a_declared_share_of_dirt_leaves_no_threshold_to_the_odd_image():
    scores = np.exp(0.2 * np.random.default_rng(2).normal(size=60))
    scores[41] = 9.0
    found = find_setter(scores, None, 0.01, contamination=0.02)
    assert found.threshold < 9.0
    assert not found.apart
