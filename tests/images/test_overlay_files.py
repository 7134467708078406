import base64
import io

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.images.overlay_files import OverlayFolder


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


PICTURE = encoded(np.zeros((20, 30, 3), np.uint8))
MAP = base64.b64encode(encoded(np.full((20, 30), 200, np.uint8))).decode()


def test_files_are_called_as_pictures_are_below_what_they_have_in_common(tmp_path):
    sources = [tmp_path / "in/a/1.jpg", tmp_path / "in/b/1.jpg", tmp_path / "in/b/c/2.png"]
    folder = OverlayFolder(str(tmp_path / "out"), sources, [str(tmp_path / "in")])
    written = [folder.write(source, PICTURE, MAP).relative_to(tmp_path) for source in sources]
    assert [str(w) for w in written] == ["out/a/1.jpg.png", "out/b/1.jpg.png", "out/b/c/2.png.png"]
    again = OverlayFolder(str(tmp_path / "out"), sources)
    again.write(sources[0], PICTURE, MAP)  # our own are drawn again
    far = [f"s3://bucket/day{i}/x.png" for i in range(2)]
    remote = OverlayFolder(str(tmp_path / "far"), far)
    assert remote.write(far[1], PICTURE, MAP) == tmp_path / "far/day1/x.png.png"
    one = OverlayFolder(str(tmp_path / "one"), sources[:1])
    assert one.write(sources[0], PICTURE, MAP) == tmp_path / "one/1.jpg.png"


def test_nothing_of_the_user_is_replaced_or_mixed_with(tmp_path):
    pictures = tmp_path / "in"
    pictures.mkdir()
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out/1.png.png"
    mine.write_bytes(PICTURE)
    folder = OverlayFolder(str(tmp_path / "out"), [pictures / "1.png"])
    with pytest.raises(ConfigError, match="exists and was not written as an overlay"):
        folder.write(pictures / "1.png", PICTURE, MAP)
    assert mine.read_bytes() == PICTURE
    for place in (pictures, pictures / "overlays"):
        with pytest.raises(ConfigError, match="lies among the pictures"):
            OverlayFolder(str(place), [pictures / "1.png"])
        with pytest.raises(ConfigError, match="lies among the pictures"):
            OverlayFolder(str(place), [pictures / "a/1.png"], [str(pictures)])
    with pytest.raises(ConfigError, match="not a local folder"):
        OverlayFolder("s3://bucket/overlays", [])
    with pytest.raises(ConfigError, match="cannot be made"):
        OverlayFolder(str(mine / "below"), [pictures / "1.png"])
