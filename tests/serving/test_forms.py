"""Every JSON form that MLflow lets through gives the same rows."""

import base64
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import _split_data_and_params, infer_and_parse_data

import dfm_mlflow
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.serving.forms import unwrapped

from ..detectors import pictures

IMAGES = pictures(1, 7) + pictures(1, 8, defect=True)
B64 = [base64.b64encode(image).decode() for image in IMAGES]
WRAPPED = [{"b64": text} for text in B64]
PIXELS = [decode_image(image)[:, :, 0].tolist() for image in IMAGES]  # these are grey pictures
FORMS = {
    "inputs": {"inputs": B64},
    "inputs, nested": {"inputs": [[text] for text in B64]},
    "inputs, by name": {"inputs": {"image": B64}},
    "inputs, by name, nested": {"inputs": {"image": [[text] for text in B64]}},
    "inputs, by name, b64": {"inputs": {"image": WRAPPED}},
    "inputs, rows": {"inputs": [{"image": text} for text in B64]},
    "inputs, rows, b64": {"inputs": [{"image": one} for one in WRAPPED]},
    "instances": {"instances": B64},
    "instances, nested": {"instances": [[text] for text in B64]},
    "instances, rows": {"instances": [{"image": text} for text in B64]},
    "instances, rows, b64": {"instances": [{"image": one} for one in WRAPPED]},
    "instances, pixels": {"instances": [{"image": rows} for rows in PIXELS]},
    "inputs, pixels": {"inputs": {"image": PIXELS}},
    "records": {"dataframe_records": [{"image": text} for text in B64]},
    "split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in B64]}},
}


@pytest.fixture(scope="module")
def loaded(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("forms") / "model"
    dfm_mlflow.save_model(detector, path)
    return mlflow.pyfunc.load_model(str(path))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_of_json_gives_the_rows_of_its_pictures(loaded, detector, form):
    data, params = _split_data_and_params(json.dumps(form))
    found = loaded.predict(infer_and_parse_data(data, loaded.metadata.get_input_schema()), params)
    expected = detector.score(IMAGES)
    np.testing.assert_allclose(found["anomaly_score"], expected["anomaly_score"], rtol=1e-5)
    assert found["error"].isna().all()


def test_what_is_no_picture_stays_what_it_is():
    for value in (b"{'b64': 'QUJD', 'x': 1}", {"b64": "x", "y": 1}, [[1, 2], [3]], [[0.5]], "a", 7):
        assert unwrapped(value) == value
    assert unwrapped([[1, 300], [2, 3]]) == [[1, 300], [2, 3]]
    assert unwrapped(b"{'b64': 'QUJD'}") == b"QUJD"
    assert unwrapped({"b64": "QUJD"}) == unwrapped([["QUJD"]][0]) == "QUJD"


def test_a_table_of_arrays_or_pil_images_is_never_called_empty(loaded):
    from PIL import Image

    array = decode_image(IMAGES[0])
    for value in (array, Image.fromarray(array), array.tolist()):
        table = pd.DataFrame({"image": pd.Series([value], dtype="object")})
        found = loaded.predict(table, {"on_error": "report"})
        assert found["error"].isna().all()
