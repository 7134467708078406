import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dfm_mlflow.network.cache import FeatureCache

from .conftest import PICTURES, make


def test_cached_features_are_the_same_and_skip_the_network(backbone, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    first = make(backbone, cache=cache).extract(PICTURES)
    again = make(backbone, cache=cache)
    monkeypatch.setattr(again, "run_batch", lambda pixels: pytest.fail("the network ran"))
    second = again.extract(PICTURES)
    assert torch.equal(first.features[0], second.features[0])
    assert first.sizes == second.sizes
    other = make(backbone, cache=cache, pooling=1).extract(PICTURES[:1])
    assert other.features[0].shape[2:] == (8, 8)


def test_a_damaged_cache_entry_costs_one_extraction(backbone, tmp_path):
    extractor = make(backbone, cache=FeatureCache(tmp_path))
    first = extractor.extract(PICTURES[:2]).features[0]
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:30])
    assert torch.equal(extractor.extract(PICTURES[:2]).features[0], first)


def test_cache_keeps_its_limit_and_the_newest(tmp_path):
    cache = FeatureCache(tmp_path, limit=3000)
    for i in range(6):
        cache.put(f"{i:02d}", [np.zeros(200, np.float32)])
        path = next(tmp_path.glob(f"*/{i:02d}.safetensors"))
        os.utime(path, (i, i))
    cache.trim()
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*")) <= 3000
    assert cache.get("05") is not None
    assert cache.get("00") is None


def test_an_unwritable_cache_warns_and_the_work_goes_on(backbone, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    extractor = make(backbone, cache=FeatureCache(tmp_path / "file"))
    assert len(extractor.extract(PICTURES[:2]).kept) == 2
    assert "cannot be written" in caplog.text


def entry_of(cache, arrays, key="ab" * 32):
    cache.put(key, arrays)
    return cache.path(key)


@pytest.mark.parametrize("shape", [(3,), (7, 5), (64, 8, 8)])
def test_no_flipped_bit_is_given_back(tmp_path, shape):
    cache = FeatureCache(tmp_path)
    arrays = [np.ones(shape, np.float32), np.array([7, 9])]
    whole = bytearray(entry_of(cache, arrays).read_bytes())
    rng = np.random.default_rng(0)
    for place in [*range(8, 40), *rng.integers(8, len(whole), 200), len(whole) - 1]:
        path = entry_of(cache, arrays)
        damaged = whole.copy()
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = cache.get("ab" * 32)
        # what no number depends on may differ: the order and spaces of the header
        assert found is None or all(map(np.array_equal, found, arrays))
    assert not path.exists()


def test_an_entry_of_an_earlier_version_counts_as_missing(tmp_path):
    cache = FeatureCache(tmp_path)
    path = entry_of(cache, [np.ones(3, np.float32)])
    save_file({"0": np.ones(3, np.float32)}, path)
    assert cache.get("ab" * 32) is None
    assert not path.exists()


def test_another_user_s_entry_is_read_and_left_as_it_is(tmp_path, monkeypatch):
    cache, arrays = FeatureCache(tmp_path, limit=10), [np.ones(3, np.float32)]
    path = entry_of(cache, arrays)

    def refuse(*given, **named):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(type(path), "unlink", refuse)
    (found,) = cache.get("ab" * 32)
    assert np.array_equal(found, arrays[0])
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("ab" * 32) is None
    cache.trim()
    assert path.exists()


def test_arrays_come_back_in_their_shapes(tmp_path):
    cache = FeatureCache(tmp_path)
    arrays = [np.array(0.5), np.arange(12.0).reshape(3, 4).T, np.zeros((0, 2)), np.array([3, 4])]
    cache.put("ab" * 32, arrays)
    for found, array in zip(cache.get("ab" * 32), arrays, strict=True):
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found, array)
