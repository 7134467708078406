import json
import math

import numpy as np
import pytest

from dfm_mlflow.core.lifetime import LifetimeTest
from dfm_mlflow.errors import ConfigError, DataError


def p_values(n, lives, pictures, seed=0, shift=0.0, start=0):
    """P-values of good pictures, one calibration a life; scores shift from one picture on."""
    rng = np.random.default_rng(seed)
    known = np.sort(rng.normal(size=(lives, n)), axis=1)
    scores = rng.normal(size=(lives, pictures)) + shift * (np.arange(pictures) >= start)
    pairs = zip(known, scores, strict=True)
    return (1 + n - np.array([np.searchsorted(k, s) for k, s in pairs])) / (n + 1)


@pytest.mark.parametrize("n", [50, 300])
def test_good_pictures_keep_the_promise_and_lives_side_by_side_are_each_one_life(n):
    together, some = LifetimeTest(n, promise=0.2, shape=(200,)), LifetimeTest(n, shape=(200,))
    alone = LifetimeTest(n)
    p = p_values(n, 200, 3000, seed=n)
    together.update(p)
    some.update(p[:, :300])
    for one in p[7, :300]:
        alone.update(one)
    # promised: 0.1 for each signal; 200 lives show 0.04 more by chance at most
    assert together.flagged.alarm.mean() <= 0.14
    assert together.drift.alarm.mean() <= 0.14
    for one, many in ((alone.flagged, some.flagged), (alone.drift, some.drift)):
        assert float(one.evidence) == pytest.approx(many.evidence[7], rel=1e-9)
        assert int(one.alarmed_at) == many.alarmed_at[7]


def test_a_change_is_found_and_defects_raise_one_signal_only():
    n, start = 300, 300
    shifted, dirty = LifetimeTest(n, shape=(40,)), LifetimeTest(n, shape=(40,))
    shifted.update(p_values(n, 40, 1000, shift=0.8, start=start))
    p = p_values(n, 40, 2000)
    defects = np.random.default_rng(5).random(p.shape) < 0.06 * (np.arange(2000) >= start)
    dirty.update(np.where(defects, 1 / (n + 1), p))
    assert shifted.drift.alarm.mean() > 0.95
    assert np.median(shifted.drift.alarmed_at) < start + 200
    assert dirty.flagged.alarm.mean() > 0.7
    assert dirty.drift.alarm.mean() <= 0.05


def test_it_is_one_sided():
    test = LifetimeTest(100, shape=(50,))
    test.update(p_values(100, 50, 1000, shift=-2.0))
    assert not test.alarm.any()
    assert (test.flagged.evidence <= 1).all()


def test_what_the_operator_expects_is_no_alarm():
    n, rng = 300, np.random.default_rng(6)
    asked, silent = (
        LifetimeTest(n, expected_flagged=0.06, shape=(60,)),
        LifetimeTest(n, shape=(60,)),
    )
    p = p_values(n, 60, 1500, seed=2)
    p = np.where(rng.random(p.shape) < 0.05, 1 / (n + 1), p)
    asked.update(p)
    silent.update(p)
    assert not asked.flagged.alarm.any()
    assert silent.flagged.alarm.mean() > 0.6


def test_it_goes_on_from_json_with_the_same_numbers():
    whole, parts = LifetimeTest(60, expected_flagged=0.05), LifetimeTest(60, expected_flagged=0.05)
    for i, p in enumerate(p_values(60, 1, 400, shift=1.5, start=200)[0]):
        whole.update(p)
        parts.update(float(p))
        if i % 50 == 0:
            parts = LifetimeTest.from_json(parts.to_json())
    assert parts.to_json() == whole.to_json()
    assert len(whole.to_json()) < 4000
    assert whole.drift.alarm
    assert bool(LifetimeTest.from_json(whole.to_json()).alarm)


def broken(change):
    data = json.loads(LifetimeTest(60).to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "null",
        broken(lambda d: d.pop("fpr")),
        broken(lambda d: d.update(n="many")),
        broken(lambda d: d.update(flagged=[])),
        broken(lambda d: d["drift"].pop("bets")),
        broken(lambda d: d["drift"].update(tail=[1.0])),
        broken(lambda d: d["flagged"].update(tail=[math.nan])),
        broken(lambda d: d["flagged"].update(seen="x")),
    ],
)
def test_a_text_that_is_something_else_is_refused(text):
    with pytest.raises(DataError, match="lifetime test"):
        LifetimeTest.from_json(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 1}, "n=1 .*2 are needed"),
        ({"n": 50, "fpr": 0}, "fpr=0 is outside"),
        ({"n": 50, "promise": 1}, "promise=1 is outside"),
        ({"n": 50, "expected_flagged": 0.01}, "expected_flagged=0.01 .* 0.0196"),
        ({"n": 4, "fpr": 0.9}, "give a smaller fpr"),
    ],
)
def test_parameters_out_of_range_are_named(given, words):
    with pytest.raises(ConfigError, match=words):
        LifetimeTest(**given)


@pytest.mark.parametrize("p", [0, 1.5, math.nan])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ConfigError, match="leave out pictures"):
        LifetimeTest(50).update(p)


def test_ranks_are_exact_on_the_grid_and_never_smaller_beside_it():
    test = LifetimeTest(999, fpr=0.01)
    test.update(np.arange(1, 1001) / 1000)
    assert test.flagged.counts.tolist() == [10]
    assert test.drift.counts.tolist() == [math.floor(u * 990) for u in (0.02, 0.05, 0.1, 0.25, 0.5)]
    small = LifetimeTest(999, fpr=0.01)
    small.update([1e-5, 0.01 + 1e-6])  # the first as a generalised Pareto tail estimates it
    assert small.flagged.counts.tolist() == [1]
