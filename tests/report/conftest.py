import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.data.item import Item, Mask

from ..conftest import texture
from ..detectors import fit
from ..drawing import drawn


@pytest.fixture(autouse=True)
def _drawn():
    """Here charts are drawn, which other tests leave out."""
    with drawn():
        yield


def items_in(folder, category="stripes", label="hole", side=64, n=6, seed=3):
    """Test pictures: good ones, and ones with a defect and its mask."""
    rng = np.random.default_rng(seed)
    items = []
    for kind, defect in (("good", False), (label, True)):
        place = folder / f"{seed}-{defect}"  # a label may be no name of a folder
        place.mkdir(parents=True)
        for i in range(n):
            pixels = texture(rng, side, defect=defect)
            Image.fromarray(pixels).save(place / f"{i}.png")
            mask = None
            if defect:
                mask = place / f"{i}_mask.png"
                Image.fromarray((pixels[:, :, 0] == 10).astype(np.uint8) * 255).save(mask)
            items.append(Item(place / f"{i}.png", category, "test", kind, mask and Mask((mask,))))
    return items


@pytest.fixture(scope="module")
def detector():
    return fit(fpr="0.1")
