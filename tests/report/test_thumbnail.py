import base64
import io

import numpy as np
from PIL import Image

from dfm_mlflow.report.thumbnail import SIDE, data_url


def test_a_thumbnail_is_a_small_picture_that_the_page_holds():
    pixels = np.random.default_rng(0).integers(0, 256, (900, 600, 3), dtype=np.uint8)
    kind, _, data = data_url(pixels).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert max(image.size) == SIDE
        assert image.size[1] > image.size[0]
