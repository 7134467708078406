import pytest

from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.measure import measure

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit()


def listed(folder, n, label="good", **drawn):
    folder.mkdir(exist_ok=True)
    items = []
    for i, data in enumerate(pictures(n, **drawn)):
        path = folder / f"{label}{i}.png"
        path.write_bytes(data)
        items.append(Item(path, "stripes", "test", label))
    return items


def test_labels_give_metrics_and_drift_is_looked_for_in_good_ones_alone(detector, tmp_path):
    items = listed(tmp_path, 20, seed=8) + listed(tmp_path, 20, "hole", seed=9, defect=True)
    found = measure(detector, items, True)
    metrics, sentences = found.metrics, found.sentences
    assert metrics["image_auroc"] > 0.9
    assert metrics["n_test"] == 40
    assert metrics["drift_flagged"] == metrics["false_positive_rate"]
    blind = measure(detector, items, False).metrics
    assert "image_auroc" not in blind
    both = (metrics["recall"] + metrics["false_positive_rate"]) / 2
    assert blind["drift_flagged"] == pytest.approx(both)
    assert "look" in sentences[-1]


def test_nothing_that_can_be_read_is_an_error(detector, tmp_path):
    (tmp_path / "a.png").write_bytes(b"noise")
    with pytest.raises(DataError, match="None of 1 pictures can be read"):
        measure(detector, [Item(tmp_path / "a.png", "stripes", "test", "good")], True)
