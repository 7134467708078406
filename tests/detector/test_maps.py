import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfm_mlflow.detector.maps import (
    combine_layers,
    largest_of,
    normaliser_of,
    scale_of,
    smooth_map,
    to_level,
    to_png,
)

from ..conftest import examples


def test_layers_are_averaged_on_the_finest_grid():
    fine, coarse = torch.rand(3, 8, 6), torch.full((3, 4, 3), 5.0)
    ones = [torch.ones(8, 6), torch.ones(4, 3)]
    count = [one.numpy() for one in ones]
    torch.testing.assert_close(combine_layers([fine, coarse], ones, count), (fine + 5) / 2)
    halved = combine_layers([fine, coarse], [2 * ones[0], 5 * ones[1]], count)
    torch.testing.assert_close(halved, (fine / 2 + 1) / 2)


@examples(30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_what_is_constant_in_a_region_is_so_up_to_its_border(seed, height, width):
    draw = np.random.default_rng(seed)
    region = draw.random((4 * height, 4 * width)) < 0.3
    region[0, 0] = True
    coarse = region.reshape(height, 4, width, 4).any((1, 3))  # as a region touches coarse cells
    cells = [region.astype(np.float32), coarse.astype(np.float32)]
    maps = [torch.from_numpy(3 * one)[None] for one in cells]
    whole = combine_layers(maps, [torch.ones(one.shape) for one in cells], cells)[0]
    torch.testing.assert_close(whole[torch.from_numpy(region)], torch.full((region.sum(),), 3.0))


def test_usual_is_the_mean_with_a_floor():
    maps = torch.rand(50, 4, 4) + 1
    maps[:, 0, 0] = 1e-6  # a position that never varies
    maps[:, 3, 3] = 0  # one outside the region of interest
    assert (normaliser_of(maps, "none") == 1).all()
    inside = maps.mean(0)[maps.mean(0) > 0].mean()
    assert normaliser_of(maps, "global").unique().tolist() == [pytest.approx(float(inside))]
    position = normaliser_of(maps, "position")
    torch.testing.assert_close(position[1:3], maps.mean(0)[1:3])
    assert position[0, 0] == position[3, 3] == pytest.approx(0.3 * float(inside))
    # half way on a scale of ratios, so that it commutes with one of its own
    torch.testing.assert_close(
        normaliser_of(maps, "blend") ** 2, position * normaliser_of(maps, "global")
    )
    torch.testing.assert_close(normaliser_of(9 * maps, "blend"), 9 * normaliser_of(maps, "blend"))


@examples(20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 600), st.integers(1, 80))
def test_a_full_map_has_the_picture_s_size_and_stays_within_its_values(h, w, height, width):
    values = torch.rand(h, w)
    full = smooth_map(values, (height, width))
    assert full.shape == (height, width)
    assert full.min() >= values.min() - 1e-5
    assert full.max() <= values.max() + 1e-5


def test_a_full_map_is_smooth_and_keeps_its_place():
    values = torch.zeros(8, 8)
    values[2, 5] = 1
    full = smooth_map(values, (256, 320))
    top, left = np.unravel_index(int(full.argmax()), full.shape)
    assert abs(top - 2.5 * 32) < 12
    assert abs(left - 5.5 * 40) < 15
    assert float((full[1:] - full[:-1]).abs().max()) < 0.05


def test_padding_around_the_middle_is_cut_off():
    values = torch.zeros(8, 8)
    values[2:6] = torch.arange(8.0)  # the picture fills the middle half of the height
    full = smooth_map(values, (64, 128), part=(0.5, 1.0))
    assert full.shape == (64, 128)
    assert float(full[20:44].min(dim=1).values.mean()) < 1
    assert (full[20:44, -8:] > 5).all()


def test_levels_mean_the_same_in_every_picture():
    assert to_level(torch.tensor([[0.0, 2.0, 4.0]]), 2.0).tolist() == [[0, 128, 255]]
    png = to_png(to_level(torch.rand(5, 7), 1.0))
    assert Image.open(io.BytesIO(png)).size == (7, 5)


def test_one_odd_picture_blanks_no_other():
    maps = torch.rand(31, 8, 8) + 0.5
    calm = scale_of(largest_of(maps))
    odd = maps.clone()
    odd[0] *= 100
    assert scale_of(largest_of(odd)) <= largest_of(maps).max()
    assert scale_of(largest_of(odd)) == pytest.approx(calm, rel=0.15)
    assert scale_of(np.empty(0)) == 0


def test_nine_in_ten_good_pictures_stay_under_the_middle_as_they_are_drawn():
    maps = torch.rand(100, 6, 9, generator=torch.Generator().manual_seed(0)).log().neg()
    scale = scale_of(largest_of(maps))
    drawn = [to_level(smooth_map(m, (6 * 32, 9 * 32)), scale).max() for m in maps]
    assert np.mean(np.array(drawn) <= 128) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("size", [(40, 60), (97, 64), (5, 600), (8, 9)])
def test_a_smooth_map_is_one_that_torch_interpolates_and_torchvision_blurs(size):
    from torchvision.transforms.v2.functional import gaussian_blur

    values = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    work = [min(s, 512) for s in size]
    full = torch.nn.functional.interpolate(values[None, None], work, mode="bilinear")
    sigma = [0.3 * w / c for w, c in zip(work, values.shape, strict=True)]
    kernel = [min(2 * int(np.ceil(2 * s)) + 1, 2 * w - 1) for s, w in zip(sigma, work, strict=True)]
    full = gaussian_blur(full, kernel[::-1], sigma[::-1])
    full = torch.nn.functional.interpolate(full, size, mode="bilinear")[0, 0]
    torch.testing.assert_close(smooth_map(values, size), full, rtol=0, atol=1e-6)
