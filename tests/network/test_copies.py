import numpy as np
import pytest
import torch

from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.copies import COPIES, UPRIGHT, augment_of, turned, turned_input

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
    # a turned input is the input of a turned picture up to a level of its rounding
    torch.testing.assert_close(found.features[0], expected.features[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"size": (64, 96)}, {"roi": np.eye(70, 50) == 0}])
def test_a_square_input_is_turned_itself_and_else_the_picture_is(backbone, options):
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    extractor = make(backbone, **options)
    copy = COPIES["all"][6]
    found = extractor.extract([image], copies=(copy,)).features[0]
    if options:
        expected = extractor.run_batch(extractor.pixels.resized(turned(image, copy))[None])[0]
    else:
        expected = extractor.run_batch(turned_input(extractor.pixels.resized(image), copy)[None])[0]
    torch.testing.assert_close(found, expected)


def test_pictures_that_are_held_are_not_read_again(backbone, tmp_path):
    paths = []
    for i, picture in enumerate(PICTURES[:3]):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(picture)
    extractor, other = make(backbone), make(backbone)
    first = extractor.extract(paths, hold=True)
    expected = other.extract(paths, copies=COPIES["rotations"]).features[0]
    extractor.take_back(paths, first)
    for path in paths:
        path.unlink()
    found = extractor.extract(paths, copies=COPIES["rotations"])
    torch.testing.assert_close(found.features[0], expected)
    assert found.digests == first.digests
    extractor.release()
    assert len(extractor.extract(paths).errors) == 3


def test_turning_an_input_is_turning_a_picture():
    square = IMAGE[:4]
    for one in COPIES["all"]:
        found = turned_input(torch.from_numpy(square).permute(2, 0, 1), one).permute(1, 2, 0)
        np.testing.assert_array_equal(found.numpy(), turned(square, one))


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
