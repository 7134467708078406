"""Line-scan pictures: above the usual limit of pixels, in bounded memory."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import Decoder
from dfm_mlflow.images.limits import MAX_BYTES, MAX_PIXELS
from dfm_mlflow.network.copies import UPRIGHT
from dfm_mlflow.network.extractor import Extractor

from .conftest import PICTURES, make

SIZE = (16384, 4096)
# Trains on pictures and scores them, and prints the most memory before and in all, in MB.
CODE = """
import json, resource, sys
from pathlib import Path
from dfm_mlflow.config import Options
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.depths import extract_settled

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

options = Options.parse(json.loads(sys.argv[2])).resolve()
paths = sorted(Path(sys.argv[1]).iterdir())
items = [Item(path, "web", "train", "good") for path in paths]
extractor, weights, options = build_extractor(options.model_copy(update={"tile": "128"}))
before = most()
extractor, weights, options = build_extractor(options, items)
known, extraction = extract_settled(extractor, paths)
detector = AnomalyDetector.fit(options, known, extraction, ["web"] * len(paths), weights)
table = detector.score(paths)
print(json.dumps([before, most(), extraction.sizes, table["error"].isna().all().item()]))
"""
OPTIONS = {
    "category": "web",
    "weights": "random",
    "image_size": "512x128",
    "tile": "128",
    "max_megapixels": "70",
    "layers": "layer1",
    "pooling": "8",
    "cache": "false",
    "device": "cpu",
}


@pytest.mark.slow
def test_16384x4096_pixels_are_trained_on_and_scored_in_bounded_memory(tmp_path):
    rng = np.random.default_rng(0)
    for i, kind in enumerate(("png", "tiff", "pgm", "png")):
        values = np.repeat(rng.integers(0, 256, (SIZE[0], 1), dtype=np.uint8), SIZE[1], axis=1)
        values += rng.integers(0, 9, (1, SIZE[1]), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.{kind}")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), json.dumps(OPTIONS)],
        capture_output=True,
        text=True,
        timeout=570,
        check=True,
    )
    before, most, sizes, scored = json.loads(done.stdout.splitlines()[-1])
    assert sizes == [list(SIZE)] * 4
    assert scored
    # two at a time, each of at most 20 bytes a pixel
    assert most - before < 2 * 20 * SIZE[0] * SIZE[1] / 2**20 < 2600


def test_the_limit_is_raised_for_pixels_and_for_bytes():
    usual, raised = Decoder(), Decoder(max_pixels=70_000_000)
    assert (usual.max_pixels, usual.max_bytes) == (MAX_PIXELS, MAX_BYTES)
    assert raised.max_bytes == 420_000_000  # colours of 16 bits, as they are
    data = b"P5\n4096 16384\n255\n"
    with pytest.raises(ImageError, match="more than the limit of 50000000"):
        usual.decode(data)
    with pytest.raises(ImageError, match="values are missing"):
        raised.decode(data)


def test_few_large_pictures_are_decoded_at_a_time_and_wait_for_the_network(backbone):
    large = Extractor(
        backbone, (64, 64), "stretch", 1, make(backbone).device, decoder=Decoder(max_pixels=10**8)
    )
    for one in (large, large.with_runner(large.run_batch, nullcontext())):  # as a server has it
        inside, most = [], []

        def resized(image, inside=inside, most=most):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return torch.zeros(3, 64, 64, dtype=torch.uint8)

        one.pixels.resized = resized
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p, one=one: one._reading().prepare(p, [UPRIGHT]), PICTURES))
        assert max(most) == 2
