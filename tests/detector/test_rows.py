import base64
import io

import numpy as np
import torch
from PIL import Image

from dfm_mlflow.columns import COLUMNS, DECISION
from dfm_mlflow.detector.rows import empty_rows, encoded_map
from dfm_mlflow.images.overlay import GOOD_LEVEL
from dfm_mlflow.network.extraction import Extraction


def test_a_row_that_could_not_be_read_holds_its_error_alone():
    rows = empty_rows(Extraction([], [0], {1: "It is empty."}, [(4, 4)]), 2)
    assert [list(row) for row in rows] == [[*COLUMNS, *DECISION]] * 2
    assert [row.pop("error") for row in rows] == [None, "It is empty."]
    assert {value for row in rows for value in row.values()} == {None}


def test_a_map_that_equals_the_scale_is_drawn_at_the_level_of_good_pictures():
    text = encoded_map(torch.full((3, 5), 2.0), (30, 50), (1.0, 1.0), scale=2.0)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    assert drawn.shape == (30, 50)
    assert (drawn == GOOD_LEVEL).all()
