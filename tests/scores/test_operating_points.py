import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.core.operating_point import RATES, Costs
from dfm_mlflow.scores.operating_points import (
    chance_of_alarms,
    cheapest,
    cost_sentence,
    flagged_at,
    operating_points,
    rate_lines,
    recall_metrics,
)

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit({"stripes": pictures(30), "bands": pictures(12, seed=5, shift=60)}, fpr="0.05")


@pytest.fixture(scope="module")
def table(detector):
    images = pictures(12, seed=1) + pictures(8, seed=2, defect=True)
    scored = detector.score(images)
    return scored.assign(category="stripes", defective=np.arange(20) >= 12, label="x")


def test_every_rate_decides_as_the_model_would(detector, table):
    images = pictures(12, seed=1) + pictures(8, seed=2, defect=True)
    for fpr in (0.01, 0.05, 0.2):
        there = detector.score(images, fpr=fpr)["is_anomaly"].to_numpy(bool)
        np.testing.assert_array_equal(flagged_at(detector, table, fpr), there)
    points = operating_points(detector, table)
    assert [p.fpr for p in points] == sorted(RATES)  # 0.05 is one of them
    assert [p.fpr for p in points if p.current] == [0.05]
    for p in points:
        flagged = flagged_at(detector, table, p.fpr)
        assert (p.good, p.defective) == (12, 8)
        assert (p.good_flagged, p.found) == (flagged[:12].sum(), flagged[12:].sum())
        assert p.thresholds == detector.thresholds(p.fpr)
    assert {f"recall_at_fpr/{rate:g}" for rate in RATES} == set(recall_metrics(points))
    assert recall_metrics(points)["recall_at_fpr/0.1"] == points[-1].found / 8


def test_what_is_not_known_is_left_out(detector, table):
    blind = operating_points(detector, table.assign(defective=None))
    assert all((p.good, p.defective, p.recall, p.interval) == (0, 0, None, None) for p in blind)
    assert recall_metrics(blind) == {}
    assert cheapest(blind, Costs(1, 1, 0.1)) is None
    drawn = operating_points(detector, table[:12], np.array([0, 0, 0.03, 0.5, 1, 1, 1, 1]))
    assert [p.drawn_found for p in drawn] == [2, 2, 3, 3]
    assert all(p.recall == p.drawn_found / 8 for p in drawn)
    assert recall_metrics(drawn) == {}  # the metric is of real defects
    assert "drawn ones" in "\n".join(rate_lines(drawn))
    empty = operating_points(detector, table[:0])
    assert len(rate_lines(empty)) == 1 + len(RATES)


def test_the_cheapest_follows_the_costs(detector, table):
    points = operating_points(detector, table)
    assert cheapest(points, Costs(0, 1, 0.01)) is points[0]  # only overkill costs
    found = [p.found for p in points]
    dear = cheapest(points, Costs(1, 0, 0.5))  # only escapes do
    assert dear.found == max(found)
    assert dear is points[found.index(max(found))]  # the smaller rate of two alike
    sentence = cost_sentence(points, Costs(0, 1, 0.01))
    assert "fpr=0.01 is the cheapest of these rates on the defects at hand" in sentence
    assert "at fpr=0.05" in sentence
    assert cost_sentence(points, None) is None


def test_a_small_test_set_does_not_make_false_alarms_free(detector, table):
    point = operating_points(detector, table)[0]
    assert point.cost(Costs(0, 1, 0.5)) >= 0.5 * point.promised


def test_the_chance_counts_each_category_by_its_own_calibration(detector):
    good = pd.DataFrame({"category": ["stripes"] * 10, "is_anomaly": [True] * 4 + [False] * 6})
    many = chance_of_alarms(detector, good)
    few = chance_of_alarms(detector, good.assign(category="bands"))
    assert many < few  # 12 pictures promise less, and their threshold is less certain
    unknown = chance_of_alarms(detector, good.assign(category="gears"))
    assert unknown == few
    assert chance_of_alarms(detector, good[:0]) == 1
