"""What Python may give in place of bytes, to the library and to ``mlflow.pyfunc`` alike."""

import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

import dfm_mlflow
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.serving.pyfunc import PyfuncModel

from ..detectors import pictures

IMAGES = pictures(2, 7) + pictures(2, 8, defect=True)


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "model"
    dfm_mlflow.save_model(detector, path)
    return path


def test_whatever_python_calls_a_picture_gives_the_same_row(detector, saved, tmp_path):
    rgb = decode_image(IMAGES[0])
    grey = rgb[:, :, 0]  # these are grey pictures
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    opened = Image.open(tmp_path / "a.png")
    expected = detector.score([IMAGES[0]]).loc[0, ["fre", "p_value"]]
    same = [IMAGES[0], bytearray(IMAGES[0]), memoryview(IMAGES[0]), np.void(IMAGES[0])]
    same += [str(tmp_path / "a.png"), tmp_path / "a.png", rgb, rgb[..., ::-1], grey, opened]
    same += [grey[:, :, None], np.asfortranarray(rgb)]
    column = np.empty(len(same), object)
    column[:] = same
    index = pd.Index([f"part {i}" for i in range(len(same))])[::-1]
    loaded = mlflow.pyfunc.load_model(str(saved))
    for found in (
        detector.score(same),
        loaded.predict(pd.DataFrame({"image": column}, index=index)),
        PyfuncModel(detector).predict({"image": column}),
        PyfuncModel(detector).predict(same),
    ):
        assert found["error"].isna().all()
        np.testing.assert_allclose(found["fre"], expected["fre"], rtol=1e-5)
        assert (found["p_value"] == expected["p_value"]).all()


BAD = {
    "float64": np.zeros((9, 9, 3)),
    "bool": np.zeros((9, 9), bool),
    "uint16": np.zeros((9, 9), np.uint16),
    "channels come first": np.zeros((3, 9, 9), np.uint8),
    "type int": 7,
    "type list": [[1, 2], [3, 400]],
    r"null\)": None,
    "cannot be read": Path("nowhere.png"),
    "empty": b"",
    "not a picture in one": b"noise",
}


def test_anything_else_is_refused_by_row_as_on_error_says(detector, saved):
    column = np.empty(len(BAD) + 1, object)
    column[:] = [*BAD.values(), IMAGES[0]]
    table = pd.DataFrame({"image": column}, index=range(100, 100 + len(column)))
    loaded = mlflow.pyfunc.load_model(str(saved))
    for found in (
        loaded.predict(table, {"on_error": "report"}),
        detector.score(table["image"], on_error="report"),
    ):
        for words, sentence in zip(BAD, found["error"], strict=False):
            assert re.search(words, sentence), (words, sentence)
            assert "empty (0 bytes)" not in sentence or words == "empty"
        assert found["error"].isna().tolist() == [False] * len(BAD) + [True]
        assert found["is_anomaly"].isna().tolist() == [True] * len(BAD) + [False]
    with pytest.raises(MlflowException, match="Row 0: An array of float64") as caught:
        loaded.predict(table)
    assert caught.value.get_http_status_code() == 400
    with pytest.raises(ImageError, match="Row 0: An array of float64"):
        detector.score(column)


def test_the_index_of_the_table_comes_back(saved):
    loaded = mlflow.pyfunc.load_model(str(saved))
    table = pd.DataFrame({"image": [*IMAGES, b"noise"]}, index=[7, 3, 3, 90, -1])
    found = loaded.predict(table, {"on_error": "report"})
    assert found.index.tolist() == [7, 3, 3, 90, -1]
    unique = table[[True, True, False, True, True]].copy()
    unique["score"] = loaded.predict(unique, {"on_error": "report"})["anomaly_score"]
    of_them = found["anomaly_score"].iloc[[0, 1, 3, 4]]
    np.testing.assert_allclose(unique["score"], of_them, rtol=1e-5)
    series = pd.Series(IMAGES, index=list("abcd"), name="image")
    assert loaded.predict(series).index.tolist() == list("abcd")


@pytest.mark.parametrize(
    "single", [IMAGES[0], Path("a.png"), "a.png", np.zeros((9, 9, 3), np.uint8), np.void(b"a")]
)
def test_a_single_picture_instead_of_a_list_is_refused_with_the_remedy(detector, single):
    with pytest.raises(ConfigError, match=r"such as \[picture\]"):
        detector.score(single)
    with pytest.raises(MlflowException, match=r"such as \[picture\]") as caught:
        PyfuncModel(detector).predict(single)
    assert caught.value.get_http_status_code() == 400
