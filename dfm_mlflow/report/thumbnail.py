"""Small pictures inside a page."""

import base64
import io

import numpy as np
from PIL import Image

from dfm_mlflow.report.gallery import shrunk

SIDE = 240  # most pixels: 42 pictures of pure noise stay under 3 MB


def data_url(pixels: np.ndarray) -> str:
    """Give a picture as the address of an image: a small JPEG that the page itself holds.

    Shapes: pixels (H, W, 3) uint8.
    """
    buffer = io.BytesIO()
    Image.fromarray(shrunk(pixels, SIDE)).save(buffer, format="JPEG", quality=78)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
