import numpy as np
import pytest

from dfm_mlflow.tracking.sweep_children import label_of, table_of

CONFIGURATIONS = [{"pca_level": "0.9"}, {"pca_level": "0.97", "score": "nll"}]


def test_a_configuration_is_named_by_what_it_differs_in():
    assert label_of(CONFIGURATIONS[1]) == "pca_level=0.97, score=nll"
    assert label_of({}) == "preset"


def test_the_average_is_over_the_categories_that_are_there():
    found = {
        ("cap", 0): {"image_auroc": 0.9, "pixel_auroc": 0.5},
        ("nut", 0): {"image_auroc": 0.6},
        ("nut", 1): {"image_auroc": 0.8},
    }
    table = table_of(found, ["cap", "nut", "screw"], CONFIGURATIONS, "image_auroc")
    assert list(table.columns) == ["Avg", "cap", "nut", "screw"]
    assert list(table.index) == [label_of(c) for c in CONFIGURATIONS]
    np.testing.assert_array_equal(
        table.to_numpy(), [[0.75, 0.9, 0.6, np.nan], [0.8, np.nan, 0.8, np.nan]]
    )


@pytest.mark.filterwarnings("error")  # NumPy warns of the mean of nothing
def test_a_metric_that_nobody_has_is_an_empty_table():
    table = table_of({("cap", 0): {}}, ["cap"], CONFIGURATIONS, "pixel_aupro")
    assert table.shape == (2, 2)
    assert table.isna().all(axis=None)
