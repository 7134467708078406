from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from dfm_mlflow.core.pixel_metrics import pixel_metrics
from dfm_mlflow.data.item import Item, Mask
from dfm_mlflow.detector.maps import smooth_map
from dfm_mlflow.scores.evaluation import (
    STEPS,
    Evaluation,
    curve_points,
    defect_table,
    image_metrics,
    pixel_metrics_of,
)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    label = np.array(["good"] * 60 + ["bent"] * 30 + ["cut"] * 10)
    scores = rng.normal(size=100) + 1.5 * (label != "good")
    return pd.DataFrame(
        {
            "category": "a",
            "label": label,
            "defective": label != "good",
            "error": None,
            "anomaly_score": scores,
            "fre": scores,
            "nll": scores,
            "is_anomaly": scores > 1,
            "p_value": rng.uniform(size=100),
        }
    )


def test_curves_as_metrics_are_points_of_the_curves(table):
    curves = curve_points(table)
    assert len(STEPS) == 82
    assert (STEPS[0], STEPS[-1]) == (0, 1000)
    assert (np.diff(STEPS) > 0).all()
    truth, scores = table["defective"], table["anomaly_score"]
    false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, scores)
    promised = np.sort(table.loc[~truth, "p_value"])
    for i, x in enumerate(STEPS / 1000):
        assert curves["curve/roc_true_positive_rate"][i] == true_rate[false_rate <= x + 1e-9].max()
        at = recall[:-1] >= x - 1e-9
        assert curves["curve/precision_at_recall"][i] == precision[:-1][at].max()
        measured = curves["curve/measured_false_positive_rate"][i]
        assert measured == pytest.approx(np.mean(promised <= x))


def test_curves_need_their_pictures(table):
    good = table[table["label"] == "good"]
    assert set(curve_points(good)) == {"curve/measured_false_positive_rate"}
    assert curve_points(table[table["label"] != "good"]) == {}
    assert curve_points(table.iloc[:0]) == {}
    broken = table.assign(error="broken")
    assert curve_points(broken) == {}


def test_the_table_of_defects_agrees_with_the_metrics(table):
    kinds = defect_table(table).set_index("label")
    metrics = image_metrics(table)
    assert list(kinds.index) == ["good", "bent", "cut"]
    assert kinds["n"].sum() == 100
    for label in ("bent", "cut"):
        assert kinds.loc[label, "auroc"] == metrics[f"image_auroc/{label}"]
    assert kinds.loc["good", "flagged"] / 60 == metrics["false_positive_rate"]
    assert kinds.loc[["bent", "cut"], "flagged"].sum() / 40 == metrics["recall"]


def test_categories_are_ranked_each_by_itself(table):
    """Another scale in a second category changes no metric of ranking."""
    rng = np.random.default_rng(1)
    second = table.assign(category="b", anomaly_score=rng.permutation(table["anomaly_score"]))
    alone = [image_metrics(t) for t in (table, second)]
    scaled = second.assign(anomaly_score=second["anomaly_score"] * 1e4 + 7)
    both = pd.concat([table, scaled], ignore_index=True).assign(predicted_class="a")
    metrics = image_metrics(both)
    for name in ("image_auroc", "image_average_precision", "image_f1_max", "image_auroc_fre"):
        assert metrics[name] == pytest.approx(np.mean([m[name] for m in alone]))
    assert metrics["image_auroc/a"] == pytest.approx(alone[0]["image_auroc"])
    assert metrics["category_accuracy/good"] == metrics["category_accuracy/defective"] == 0.5
    pooled = curve_points(both)["curve/roc_true_positive_rate"]
    parts = [curve_points(t)["curve/roc_true_positive_rate"] for t in (table, second)]
    np.testing.assert_allclose(pooled, np.mean(parts, axis=0))
    only_good = both[(both["category"] == "a") | (both["label"] == "good")]
    assert image_metrics(only_good)["image_auroc"] == pytest.approx(alone[0]["image_auroc"])


def test_pixel_metrics_are_those_at_the_size_of_each_mask(tmp_path):
    """Of pictures of several sizes, one of which has a mask of half its size."""
    items, seen, pairs, rng = [], {}, [], np.random.default_rng(0)
    sizes = [((48, 80), (48, 80)), ((96, 64), (48, 32)), ((40, 40), None)]
    for i, (size, of_mask) in enumerate(sizes):
        values = torch.from_numpy(rng.random((6, 5)).astype(np.float32))
        mask = np.zeros(of_mask or size, bool)
        file = None
        if of_mask:
            mask[3 : 9 + 2 * i, 5:11] = True
            mask[20, 20] = True  # a pixel that a coarser mask would lose
            file = tmp_path / f"{i}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        items.append(
            Item(tmp_path / "p", "a", "test", "hole" if file else "good", file and Mask((file,)))
        )
        seen[i] = SimpleNamespace(map=values, size=size)
        pairs.append((smooth_map(values, mask.shape).numpy(), mask))
    found = pixel_metrics_of(
        SimpleNamespace(full_map=smooth_map),
        items,
        Evaluation(pd.DataFrame({"error": [None] * 3}), seen),
    )
    assert found == pixel_metrics(pairs) | {"n_without_mask": 0.0}
