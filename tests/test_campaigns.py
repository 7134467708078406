"""A small share of each campaign; SECURITY.md tells how to run the whole."""

import pytest

from .campaigns import artifacts, faults, images, load
from .campaigns.workers import run_all

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("module", "inputs", "most_bytes", "most_seconds"),
    [
        (images.MODULE, 2000, images.MOST_BYTES, 60),  # of a busy machine; the campaign takes 2
        (artifacts.MODULE, 40, artifacts.MOST_BYTES, 60),
    ],
)
def test_damaged_inputs_are_accepted_or_refused(module, inputs, most_bytes, most_seconds):
    tally = run_all(module, inputs, 0, most_bytes, most_seconds)
    assert tally.faults == []
    assert tally.inputs == inputs
    assert tally.accepted
    assert tally.refused > inputs / 2


def test_damaged_pictures_do_not_disturb_others_in_a_request(tmp_path):
    counts, wrong = images.serve_all(60, 0, tmp_path)
    assert wrong == []
    assert counts["refused"] + counts["scored"] == 60


def test_good_requests_are_answered_rightly_amid_garbage_and_at_the_end(tmp_path):
    tally = load.run(tmp_path, seconds=5, clients=64, garbage=0.3, slow=2, seed=0, ended=8)
    assert tally.faults == []
    assert set(tally.statuses) <= {200, 503}
    assert tally.statuses[200] > 20
    assert {status for _, status in tally.garbage} - {"left"} <= {200, 400, 405, 413, 415, 422, 503}
    assert tally.ended[200] + tally.ended[503] == 8


def test_killed_runs_leave_nothing_that_the_next_one_stumbles_over(tmp_path, empty_store):
    tally = faults.kill_runs(1, 0, tmp_path, empty_store)
    assert tally.faults == []
    assert tally.kills == 1
