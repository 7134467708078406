import json

import numpy as np
import pytest

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.lifetime import LifetimeTest
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.serving.monitor.alarm import Watch, Watched

N = 200


def calibrated(rng, **options):
    return Calibration.of(rng.normal(size=N), 10, **options)


def watch_of(calibration, promise=0.01, fpr=0.05, **options):
    watch = Watch(promise, **options)
    watch.begin("m", {"c": Watched.of(calibration, fpr)})
    return watch


def p_values(calibration, scores):
    return calibration.cautious_p_value(scores).tolist()


def test_good_pictures_raise_none_and_darker_ones_do():
    rng = np.random.default_rng(0)
    calibration = calibrated(rng)
    watch = watch_of(calibration)
    for _ in range(40):
        assert watch.update("c", p_values(calibration, rng.normal(size=50))) == []
    found = []
    for _ in range(20):
        found += watch.update("c", p_values(calibration, rng.normal(1.5, size=50)))
    assert {alarm.kind for alarm in found} == {"flagged", "drift"}
    assert len(found) == 2  # each once
    flagged = next(alarm for alarm in found if alarm.kind == "flagged")
    assert 2000 < flagged.seen < 3000
    assert flagged.evidence >= 200
    assert {kind: s["alarm"] for kind, s in watch.state().items()} == {"flagged": 1, "drift": 1}


@pytest.mark.parametrize("options", [{}, {"contamination": 0.05}, {"method": "gpd"}])
def test_false_alarms_are_as_rare_as_promised(options):
    """Lives of good pictures, each with a calibration of its own."""
    promise, lives, alarms = 0.1, 300, 0
    rng = np.random.default_rng(1)
    for _ in range(lives):
        calibration = calibrated(rng, **options)
        watch = watch_of(calibration, promise)
        alarms += bool(watch.update("c", p_values(calibration, rng.normal(size=500))))
    assert alarms / lives <= promise + 2.6 * np.sqrt(promise * (1 - promise) / lives)


def test_declared_dirt_that_was_left_out_counts_as_higher():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=N)
    all_of_them = Calibration.of(scores, 10)
    some = Calibration.of(scores, 10, contamination=0.1)
    watched = Watched.of(some, 0.05)
    assert (watched.n, watched.n_left_out) == (N, N // 10)
    new = rng.normal(size=1000)
    p_all, p_some = all_of_them.p_value(new), some.p_value(new)
    corrected = np.array([watched.p_value(p) for p in p_some])
    assert (corrected >= p_all - 1e-12).all()
    below = p_all > (N // 10 + 1) / (N + 1)  # where what was left out is higher in truth, too
    np.testing.assert_allclose(corrected[below], p_all[below])
    assert watched.fpr == pytest.approx(some.promised_fpr(0.05))


def test_a_life_goes_on_where_it_was():
    rng = np.random.default_rng(3)
    calibration = calibrated(rng)
    first = watch_of(calibration)
    p = p_values(calibration, rng.normal(0.7, size=400))
    first.update("c", p[:200])
    second = Watch(0.01)
    second.restore(first.to_json())
    second.begin("m", {"c": Watched.of(calibration, 0.05)})
    first.update("c", p[200:])
    second.update("c", p[200:])
    assert second.to_json() == first.to_json()


def test_another_version_begins_a_life_and_a_rollback_goes_on():
    rng = np.random.default_rng(4)
    old, new = calibrated(rng), calibrated(rng)
    watch = watch_of(old)
    watch.update("c", [1 / (N + 1)] * 60)
    assert watch.state()["flagged"]["alarm"]
    watch.begin("n", {"c": Watched.of(new, 0.05)})
    assert not watch.state()["flagged"]["alarm"]
    watch.begin("m", {"c": Watched.of(old, 0.05)})
    assert watch.state()["flagged"]["alarm"]
    for i in range(40):
        watch.begin(f"v{i}", {"c": Watched.of(new, 0.05)})
    assert len(json.loads(watch.to_json())["tests"]) == 16


def test_another_promise_or_calibration_begins_anew():
    rng = np.random.default_rng(5)
    calibration = calibrated(rng)
    before = watch_of(calibration)
    before.update("c", [1 / (N + 1)] * 60)
    for promise, fpr in ((0.02, 0.05), (0.01, 0.1)):
        after = Watch(promise)
        after.restore(before.to_json())
        after.begin("m", {"c": Watched.of(calibration, fpr)})
        assert not after.state()["flagged"]["alarm"]


def test_a_share_below_what_is_promised_is_not_expected():
    rng = np.random.default_rng(6)
    watched = Watched.of(calibrated(rng), 0.05)
    least = LifetimeTest(N, 0.05).expected_flagged
    assert watched.test(0.01, None).expected_flagged == least
    assert watched.test(0.01, least / 3).expected_flagged == least
    assert watched.test(0.01, 0.3).expected_flagged == 0.3


def test_what_cannot_be_watched_or_read_is_one_sentence():
    with pytest.raises(ConfigError, match="are too few to calibrate on"):
        Watched(1, 0, 0.5).test(0.01, None)
    for text in ("", "[]", '{"tests": {"m": {"c": "{}"}}}', '{"tests": 3}'):
        with pytest.raises(DataError):
            Watch(0.01).restore(text)
