from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.registry.candidate import Candidate
from dfm_mlflow.registry.comparison_gates import COMPARISON, THRESHOLD, comparison_gates


def candidate(version, **metrics):
    return Candidate(SimpleNamespace(version=version), None, 1, metrics)


def options(**given):
    return PromoteOptions.parse({"model": "m", "version": "7", "to": "production", **given})


def table(rng, n=60, strength=3.0, limit=1.5, category="a"):
    defective = np.arange(2 * n) >= n
    scores = rng.normal(size=2 * n) + strength * defective
    return pd.DataFrame(
        {
            "category": category,
            "defective": defective,
            "anomaly_score": scores,
            "is_anomaly": scores > limit,
        }
    )


def gates(new, old, best=False, by=(COMPARISON, THRESHOLD), **given):
    found = comparison_gates(
        candidate("7"), candidate("3", image_auroc=0.9), options(**given), (new, old), by, best
    )
    return {gate.name: gate for gate in found}


def test_the_same_ranking_with_another_threshold_is_refused_by_recall():
    one = table(np.random.default_rng(0))
    strict = one.assign(is_anomaly=one["anomaly_score"] > 3.5)
    found = gates(strict, one)
    assert found["comparison"].passed
    assert not found["threshold"].passed
    assert "Version 7 is worse than version 3" in found["threshold"].sentence
    assert "recall" in found["threshold"].sentence
    assert found["threshold"].figures["recall_difference"] < -0.2
    assert found["comparison"].figures["auroc_difference"] == 0
    assert all(g.passed for g in gates(one, one).values())


def test_fewer_than_twenty_of_each_cannot_tell():
    few = table(np.random.default_rng(0), n=19)
    for gate in gates(few, few).values():
        assert not gate.passed
        assert gate.may_be_forced
        assert "at least 20 of each are needed" in gate.sentence
    assert all(g.passed for g in gates(few, few, min_images="19").values())


def test_the_best_that_ever_held_it_is_another_gate_with_figures_of_its_own():
    rng = np.random.default_rng(0)
    good = table(rng)
    worse = good.assign(anomaly_score=rng.normal(size=120), is_anomaly=False)
    found = gates(worse, good, best=True)
    assert set(found) == {"best_comparison", "best_threshold"}
    assert "version 3, the best that ever held production," in found["best_comparison"].sentence
    assert found["best_comparison"].figures["best_auroc_difference"] < -0.3
    assert list(gates(worse, good, by=(THRESHOLD,))) == ["threshold"]


def test_categories_are_compared_each_by_itself():
    rng = np.random.default_rng(0)
    a, b = table(rng), table(rng, category="b")
    shifted = b.assign(anomaly_score=b["anomaly_score"] + 1000)  # another scale, the same order
    both = pd.concat([a, b], ignore_index=True)
    other = pd.concat([a, shifted], ignore_index=True)
    assert gates(other, both)["comparison"].figures["auroc_difference"] == pytest.approx(0)


def test_a_measured_version_is_not_replaced_by_one_that_cannot_be():
    good = table(np.random.default_rng(0))[:60]
    (gate,) = gates(good, good).values()
    assert not gate.passed
    assert "give data=<folder with good and defective test pictures>" in gate.sentence
    unknown = comparison_gates(candidate("7"), candidate("3"), options(), (good, good))
    assert [g.passed for g in unknown] == [True]
