import numpy as np
import pytest
import torch

from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.copies import COPIES, UPRIGHT, augment_of, turned

from .conftest import PICTURES, make

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_all_copies_are_the_eight_ways_to_lay_a_picture():
    seen = {turned(IMAGE, one).tobytes() + bytes(turned(IMAGE, one).shape) for one in COPIES["all"]}
    assert len(seen) == len(COPIES["all"]) == 8
    for name, copies in COPIES.items():
        assert copies[0] == UPRIGHT
        assert set(copies) <= set(COPIES["all"])
        assert augment_of(len(copies)) == name


def test_every_copy_can_be_turned_back():
    for one in COPIES["all"]:
        back = [turned(turned(IMAGE, one), other) for other in COPIES["all"]]
        assert sum(np.array_equal(IMAGE, b) for b in back) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_copies_are_the_features_of_turned_pictures(backbone, tmp_path, cached):
    arrays = [np.random.default_rng(i).integers(0, 256, (70, 50, 3), np.uint8) for i in range(3)]
    copies = COPIES["rotations"]
    extractor = make(backbone, cache=FeatureCache(tmp_path) if cached else None)
    found = extractor.extract(arrays, copies=copies)
    expected = extractor.extract([turned(a, one) for one in copies for a in arrays])
    assert found.kept == [0, 1, 2]
    torch.testing.assert_close(found.features[0], expected.features[0])


def test_a_broken_picture_has_no_copies_and_a_cache_knows_each(backbone, tmp_path):
    extractor = make(backbone, cache=FeatureCache(tmp_path))
    sources = [PICTURES[0], b"no picture", PICTURES[1]]
    first = extractor.extract(sources, copies=COPIES["flips"])
    assert first.kept == [0, 2]
    assert len(first.features[0]) == 4
    extractor.run_batch = None  # whatever is not in the cache would fail
    again = extractor.extract(sources, copies=COPIES["flips"])
    torch.testing.assert_close(again.features[0], first.features[0])
    alone = extractor.extract(sources)
    torch.testing.assert_close(alone.features[0], first.features[0][:2])
