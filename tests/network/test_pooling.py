import torch

from dfm_mlflow.network.pooling import base_rule, kernel_of, pool

from .conftest import PICTURES, make


def test_features_pooled_twice_are_features_pooled_once():
    raw = torch.randn(3, 5, 16, 16)
    size = (128, 128)
    assert base_rule({"stride:16", "stride:64"}) == "stride:16"
    assert base_rule({2, "stride:16"}) == 1
    assert base_rule({2}) == 2
    assert kernel_of(2, 2, raw, size) == (1, 1)
    assert kernel_of(99, 1, raw, size) == (16, 16)
    at_16 = pool(raw, kernel_of("stride:16", 1, raw, size))
    twice = pool(at_16, kernel_of("stride:32", "stride:16", at_16, size))
    torch.testing.assert_close(twice, pool(raw, kernel_of("stride:32", 1, raw, size)))
    assert pool(raw, (1, 1)) is raw


def test_pooling_is_the_mean_of_its_window(backbone):
    fine = make(backbone, pooling=1).extract(PICTURES[:2]).features[0]
    coarse = make(backbone, pooling=3).extract(PICTURES[:2]).features[0]
    assert coarse.shape[2:] == (3, 3)  # 8 = 3 + 3 + 2: the border is not lost
    torch.testing.assert_close(coarse[:, :, 0, 0], fine[:, :, :3, :3].mean((2, 3)))
    torch.testing.assert_close(coarse[:, :, 2, 2], fine[:, :, 6:, 6:].mean((2, 3)))


def test_a_partial_window_at_the_border_averages_what_it_has():
    raw = torch.arange(25.0).view(1, 1, 5, 5)
    found = pool(raw, (2, 3))
    assert found.shape == (1, 1, 3, 2)
    assert found[0, 0, 2, 1] == raw[0, 0, 4:, 3:].mean()
    torch.testing.assert_close(pool(torch.ones(1, 1, 7, 5), (3, 2)), torch.ones(1, 1, 3, 3))
    torch.testing.assert_close(pool(raw, (5, 5)).flatten(), raw.mean().view(1))


def test_a_stride_counts_pixels_of_the_input_in_each_direction():
    raw = torch.zeros(1, 1, 8, 16)
    assert kernel_of("stride:32", 1, raw, (128, 256)) == (2, 2)
    assert kernel_of("stride:32", 1, raw, (64, 256)) == (4, 2)
    assert kernel_of("stride:8", 1, raw, (128, 256)) == (1, 1)  # cells are larger already
    assert kernel_of("stride:512", 1, raw, (128, 256)) == (8, 16)
