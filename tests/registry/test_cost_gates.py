from types import SimpleNamespace

import pytest

from dfm_mlflow.registry import cost_gates


def test_time_is_the_median_over_rounds_by_turns(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr(cost_gates.time, "perf_counter", lambda: clock[0])

    def detector(name, seconds):
        def score(images):
            turns.append(name)
            # now and then the machine is busy for the length of a round
            clock[0] += seconds * (20 if len(turns) // 2 % 5 == 3 else 1)

        return SimpleNamespace(score=score)

    pair = detector("new", 0.3), detector("old", 0.1)
    ratio, new, old = cost_gates.compare_speed(*pair, [b""] * 8)
    assert (ratio, new, old) == pytest.approx((3, 8 / 0.3, 8 / 0.1))
    rounds = [tuple(turns[i : i + 2]) for i in range(2, len(turns), 2)]
    assert set(rounds) == {("new", "old"), ("old", "new")}
    assert len(rounds) >= 5
