import numpy as np

from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.report.gallery import build_gallery, outline, worst_cases
from dfm_mlflow.scores.evaluation import Evaluation, score_items

from .conftest import items_in


def test_a_picture_that_is_gone_is_left_out(detector, tmp_path, caplog):
    items = items_in(tmp_path)
    evaluation = score_items(detector, items, None)
    items[-1].path.unlink()
    catalog = Catalog("x", str(tmp_path), tuple(items))
    gallery = build_gallery(detector, catalog, evaluation)
    shown = {case.row["path"] for cases in gallery.values() for case in cases}
    assert str(items[-1].path) not in shown
    assert "is not in the report" in caplog.text


def test_the_outline_lies_around_the_mask_at_any_size():
    mask = np.zeros((200, 400), bool)
    mask[50:90, 100:180] = True
    for size in ((200, 400), (50, 100), (400, 800)):
        grey = np.full((*size, 3), 99, np.uint8)
        marked = outline(grey, mask)
        changed = (marked != grey).any(axis=2)
        scale = size[0] / 200
        inside = np.zeros(size, bool)
        inside[round(50 * scale) : round(90 * scale), round(100 * scale) : round(180 * scale)] = (
            True
        )
        assert changed.any()
        assert not changed[inside].any()
    spot = np.zeros((2000, 2000), bool)
    spot[1000, 1000] = True
    assert (outline(np.zeros((100, 100, 3), np.uint8), spot) != 0).any()


def test_the_gallery_is_ordered_by_how_wrong_it_is(detector, tmp_path):
    items = items_in(tmp_path, n=8)
    evaluation = score_items(detector, items, None)
    table = evaluation.table.copy()
    table["p_value"] = np.linspace(1, 0.05, len(table))
    table["anomaly_score"] = np.arange(len(table), dtype=float)
    table["is_anomaly"] = np.arange(len(table)) % 2 == 0
    gallery = build_gallery(
        detector, Catalog("x", "x", tuple(items)), Evaluation(table, evaluation.seen)
    )
    misses = [c.row["anomaly_score"] for c in gallery["Worst misses"]]
    alarms = [c.row["anomaly_score"] for c in gallery["Worst false alarms"]]
    assert misses == [9, 11, 13, 15]
    assert alarms == [6, 4, 2, 0]
    worst = worst_cases(gallery)
    assert list(worst["case"]) == ["miss"] * 4 + ["false alarm"] * 4
    assert max(max(p.to_pil().size) for p in worst["picture"]) <= 256
