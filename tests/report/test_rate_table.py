import numpy as np

from dfm_mlflow.core.operating_point import RATES
from dfm_mlflow.report.rate_table import which_rate
from dfm_mlflow.scores.evaluation import score_items

from ..detectors import fit
from .conftest import items_in


def test_a_row_a_rate_with_the_current_and_the_cheapest_marked(tmp_path):
    detector = fit(fpr="0.1", cost_escape="50", cost_overkill="2")
    table = score_items(detector, items_in(tmp_path), None).table
    found = which_rate(tmp_path, detector, table)
    assert [float(row["fpr"]) for row in found["rows"]] == sorted(RATES)
    assert [row["fpr"] for row in found["rows"] if row["current"]] == ["0.1"]
    assert sum(row["cheapest"] for row in found["rows"]) == 1
    assert found["rows"][-1]["found"].startswith(f"{int(table[table.defective].is_anomaly.sum())} ")
    assert "With 50 for an escape, 2 for an overkill and 0.01" in found["sentence"]
    assert "fpr=0.1 now" in found["chart"]
    assert (tmp_path / "which_rate.png").is_file()


def test_without_labels_there_is_no_recall_and_no_cost(detector, tmp_path):
    table = score_items(detector, items_in(tmp_path), None).table.assign(defective=None)
    found = which_rate(tmp_path, detector, table)
    assert {row["found"] for row in found["rows"]} == {"no defects to find"}
    assert (found["chart"], found["sentence"], found["costs"]) == (None, None, False)


def test_drawn_defects_stand_in_for_real_ones_and_are_called_so(detector, tmp_path):
    table = score_items(detector, items_in(tmp_path), None).table
    good, drawn = table[~table["defective"]], np.array([0, 0.03, 0.5])
    found = which_rate(tmp_path, detector, good, drawn)
    assert found["drawn"]
    shown = {row["fpr"]: row["found"][:18] for row in found["rows"]}
    assert (shown["0.01"], shown["0.05"]) == ("1 of 3 drawn ones ", "2 of 3 drawn ones ")
    assert "drawn defects found" in found["chart"]
    assert np.isfinite([float(row["threshold"]) for row in found["rows"]]).all()
