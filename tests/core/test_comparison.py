import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dfm_mlflow.core.comparison import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    Comparison,
    compare_auroc,
    compare_recall,
)
from dfm_mlflow.errors import DataError

from ..conftest import examples


def scored(rng, n_good, n_defective, strength=1.5, noise=1.0):
    """Labels, and two scorings that see the same strength of defect through their own noise."""
    defective = np.arange(n_good + n_defective) >= n_good
    common = rng.normal(size=len(defective)) + strength * defective
    return defective, *(common + noise * rng.normal(size=(2, len(defective))))


@st.composite
def few_pictures(draw):
    n = draw(st.integers(2, 40))
    few_values = st.lists(st.integers(-5, 5), min_size=n, max_size=n).map(np.array)
    defective = draw(st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    defective[:2] = [False, True]
    return defective, draw(few_values), draw(few_values)


@examples(60)
@given(few_pictures(), st.integers(0, 5))
def test_the_areas_are_those_of_scikit_learn_ties_included(pictures, seed):
    defective, one, other = pictures
    found = compare_auroc(defective, one, other, n_resamples=50, seed=seed)
    assert found.challenger == pytest.approx(roc_auc_score(defective, one), abs=1e-12)
    assert found.champion == pytest.approx(roc_auc_score(defective, other), abs=1e-12)
    assert -1 <= found.lower <= found.upper <= 1
    assert (found.n_good, found.n_defective) == ((~defective).sum(), defective.sum())


@examples(60)
@given(few_pictures())
def test_the_same_order_gives_an_interval_of_exactly_nothing(pictures):
    defective, scores, _ = pictures
    for same in (scores, np.exp(scores / 3.0), 7 * scores - 1000):
        found = compare_auroc(defective, scores, same, n_resamples=100)
        assert (found.difference, found.lower, found.upper) == (0, 0, 0)


@examples(40)
@given(few_pictures(), st.integers(0, 3))
def test_changing_sides_mirrors_the_interval(pictures, seed):
    defective, one, other = pictures
    there = compare_auroc(defective, one, other, n_resamples=101, seed=seed)
    back = compare_auroc(defective, other, one, n_resamples=101, seed=seed)
    assert there.difference == -back.difference
    assert (there.lower, there.upper) == (-back.upper, -back.lower)


def test_a_resample_is_what_scikit_learn_says_of_the_drawn_pictures():
    rng = np.random.default_rng(0)
    defective, one, other = scored(rng, 30, 20)
    found = compare_auroc(defective, one, other, n_resamples=400, seed=5)
    rng, differences = np.random.default_rng(5), []
    goods, bads = rng.integers(0, 30, (400, 30)), rng.integers(0, 20, (400, 20))
    for good, bad in zip(goods, bads, strict=True):
        drawn = np.concatenate([good, 30 + bad])
        areas = [roc_auc_score(defective[drawn], s[drawn]) for s in (one, other)]
        differences.append(areas[0] - areas[1])
    assert found.lower == pytest.approx(np.quantile(differences, 0.05, method="lower"), abs=1e-12)
    assert found.upper == pytest.approx(np.quantile(differences, 0.95, method="higher"), abs=1e-12)


def test_each_bound_holds_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    below = above = 0
    for _ in range(300):
        # two scorings of equal strength: the true difference is 0
        defective, one, other = scored(rng, 60, 40)
        found = compare_auroc(defective, one, other, n_resamples=300)
        below += found.lower <= 0
        above += found.upper >= 0
    assert 0.90 <= below / 300 <= 0.99
    assert 0.90 <= above / 300 <= 0.99


def test_pairing_makes_the_interval_narrow():
    rng = np.random.default_rng(2)
    defective, one, _ = scored(rng, 100, 100)
    near = one + 0.01 * rng.normal(size=200)
    apart = scored(np.random.default_rng(3), 100, 100)[1]
    widths = [f.upper - f.lower for f in (compare_auroc(defective, one, s) for s in (near, apart))]
    assert widths[0] < widths[1] / 10


@pytest.mark.parametrize(
    ("bounds", "counts", "expected"),
    [
        ((-0.019, 0.1), (50, 50), NOT_WORSE),
        ((-0.02, 0.1), (50, 50), NOT_WORSE),
        ((-0.2, -0.03), (50, 50), WORSE),
        ((-0.2, -0.02), (50, 50), UNDECIDED),
        ((-0.2, 0.2), (50, 50), UNDECIDED),
        ((0.0, 0.0), (50, 4), UNDECIDED),
        ((-0.2, -0.1), (4, 50), UNDECIDED),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_and_enough_pictures(
    bounds, counts, expected
):
    found = Comparison(0.9, 0.9, *bounds, *counts, 0.95, 2000)
    assert found.verdict(0.02, least=5) == expected


def test_a_seed_repeats_and_what_is_no_comparison_is_refused():
    rng = np.random.default_rng(4)
    defective, one, other = scored(rng, 20, 20)
    assert compare_auroc(defective, one, other) == compare_auroc(defective, one, other)
    assert compare_auroc(defective, one, other) != compare_auroc(defective, one, other, seed=1)
    with pytest.raises(DataError, match="20 good and 0 defective"):
        compare_auroc(defective[:20], one[:20], other[:20])
    with pytest.raises(DataError, match="1 of them not finite"):
        compare_auroc(defective, one, np.where(np.arange(40) == 3, np.nan, other))
    with pytest.raises(DataError, match=r"shape \(39,\) for 40 pictures"):
        compare_auroc(defective, one, other[1:])


def test_many_pictures_take_no_memory_of_pairs():
    rng = np.random.default_rng(6)
    defective, one, other = scored(rng, 20_000, 5_000)  # 100 million pairs
    start = time.perf_counter()
    found = compare_auroc(defective, one, other, n_resamples=200)
    assert time.perf_counter() - start < 20
    assert found.upper - found.lower < 0.02


def test_strata_are_compared_each_by_itself():
    """The mean over strata of AUROC; scales may differ, and a stratum of one kind says nothing."""
    rng = np.random.default_rng(3)
    parts = [scored(rng, 40, 30), scored(rng, 25, 50)]
    areas = [[roc_auc_score(p[0], p[k]) for p in parts] for k in (1, 2)]
    scales = (1.0, 1e6)
    joined = [
        np.concatenate([p[k] * (scale if k else 1) for p, scale in zip(parts, scales, strict=True)])
        for k in range(3)
    ]
    strata = ["a"] * 70 + ["b"] * 75
    found = compare_auroc(joined[0].astype(bool), *joined[1:], strata=strata)
    assert found.challenger == pytest.approx(np.mean(areas[0]))
    assert found.champion == pytest.approx(np.mean(areas[1]))
    assert (found.n_good, found.n_defective) == (65, 80)
    more = [np.r_[j, np.zeros(5)] for j in joined]
    again = compare_auroc(more[0].astype(bool), *more[1:], strata=[*strata, *"ccccc"])
    assert again == found
    same = compare_auroc(joined[0].astype(bool), joined[1], joined[1], strata=strata)
    assert (same.lower, same.upper) == (0, 0)
    apart = np.r_[np.zeros(3, bool), np.ones(3, bool)]
    with pytest.raises(DataError, match="none of both in one category"):
        compare_auroc(apart, rng.normal(size=6), rng.normal(size=6), strata=[*"aaabbb"])


def test_recall_is_compared_on_the_same_defects():
    defective = np.array([False] * 5 + [True] * 40)
    old = np.array([True] * 5 + [True] * 30 + [False] * 10)
    new = np.array([False] * 5 + [True] * 20 + [False] * 10 + [True] * 10)
    found = compare_recall(defective, new, old)
    assert (found.challenger, found.champion) == (0.75, 0.75)
    assert (found.n_good, found.n_defective) == (5, 40)
    assert found.lower < -0.05 < 0.05 < found.upper  # 10 found by each alone
    same = compare_recall(defective, old, old)
    assert (same.difference, same.lower, same.upper) == (0, 0, 0)
    back = compare_recall(defective, old, new)
    assert back.difference == -found.difference
    # what is flagged of the good ones is another gate's
    assert compare_recall(defective, new | ~defective, old).lower == found.lower


def test_the_bounds_of_recall_hold_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    below = above = 0
    defective = np.ones(80, bool)
    for _ in range(400):
        own = rng.normal(size=80)
        one, other = (own + 0.5 * rng.normal(size=(2, 80))) > -0.8  # of equal recall
        found = compare_recall(defective, one, other, n_resamples=500)
        below += found.upper < 0
        above += found.lower > 0
    assert below / 400 < 0.08
    assert above / 400 < 0.08


def test_recall_of_several_categories_is_their_mean():
    names = ["a"] * 30 + ["b"] * 3
    new, old = np.array([True] * 30 + [False] * 3), np.ones(33, bool)
    found = compare_recall(np.ones(33, bool), new, old, strata=names)
    assert (found.challenger, found.champion) == (0.5, 1)
    with pytest.raises(DataError, match="no defective picture"):
        compare_recall(np.zeros(3, bool), old[:3], old[:3])
