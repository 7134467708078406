import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.errors import DataError
from dfm_mlflow.tuning.synthetic import (
    KINDS,
    SIZES,
    STRENGTHS,
    Plan,
    draw_all,
    draw_defect,
    noise,
    plans,
)

from ..conftest import examples, texture

some_plan = st.builds(Plan, *(st.sampled_from(list(names)) for names in (KINDS, SIZES, STRENGTHS)))


def coloured(height, width, seed=0):
    rng = np.random.default_rng(seed)
    grey = np.kron(rng.integers(60, 200, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))
    picture = grey[:height, :width, None] + rng.normal(0, 5, (height, width, 3)) + [20, 0, -20]
    return picture.clip(0, 255).astype(np.uint8)


@examples(80)
@given(some_plan, st.integers(0, 2**32 - 1), st.integers(16, 90), st.integers(16, 90))
def test_a_defect_changes_its_mask_and_nothing_else(plan, seed, height, width):
    image = coloured(height, width)
    before = image.copy()
    picture, mask = draw_defect(image, plan, np.random.default_rng(seed), other=coloured(40, 60, 1))
    assert (image == before).all()
    assert (picture.dtype, picture.shape, mask.shape) == (np.uint8, image.shape, (height, width))
    assert ((picture != image).any(axis=2) == mask).all()
    assert mask.any()


@examples(40)
@given(some_plan, st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_defect_inside_the_region(plan, seed):
    image, inside = coloured(64, 48), np.zeros((64, 48), dtype=bool)
    inside[20:50, 5:30] = True
    first, mask = draw_defect(image, plan, np.random.default_rng(seed), inside=inside)
    again, _ = draw_defect(image, plan, np.random.default_rng(seed), inside=inside)
    assert (first == again).all()
    assert not mask[~inside].any()


def test_plans_are_dealt_evenly_and_follow_the_seed():
    n = 2 * len(KINDS) * len(SIZES) * len(STRENGTHS)
    assert set(collections.Counter(plans(n)).values()) == {2}
    assert plans(n, 1) == plans(n, 1)
    assert plans(n, 1) != plans(n, 2)
    assert plans(5) == plans(n)[:5]


def test_sizes_are_ordered_and_strong_is_more_than_faint():
    image = texture(np.random.default_rng(0), size=128)

    def drawn(size, strength):
        pairs = [
            draw_defect(image, Plan(kind, size, strength), np.random.default_rng(i))
            for kind in KINDS
            for i in range(12)
        ]
        areas = [mask.mean() for _, mask in pairs]
        changes = [np.abs(p.astype(int) - image)[m].mean() for p, m in pairs]
        return np.median(areas), np.mean(changes)

    areas = [drawn(size, "strong")[0] for size in SIZES]
    assert areas == sorted(areas)
    assert drawn("large", "faint")[1] < drawn("large", "strong")[1]


def test_a_defect_lies_on_the_object():
    image = np.full((96, 96, 3), 30, np.uint8)
    image[30:60, 30:60] = coloured(30, 30)
    rng = np.random.default_rng(0)
    plan = Plan("brightness", "small", "strong")
    centres = [np.argwhere(draw_defect(image, plan, rng)[1]).mean(axis=0) for _ in range(60)]
    near = [(c >= 24).all() and (c <= 66).all() for c in centres]
    assert np.mean(near) > 0.7


def test_a_picture_without_any_structure_gets_a_defect_too():
    image = np.full((32, 32, 3), 90, np.uint8)
    for plan in plans(42):
        assert draw_defect(image, plan, np.random.default_rng(0))[1].any()


def test_defects_of_grey_pictures_are_grey():
    image = texture(np.random.default_rng(0))
    for picture, _ in draw_all([image] * 42, plans(42), seed=0):
        assert (np.ptp(picture.astype(int), axis=2) <= 1).all()


def test_a_region_without_pixels_is_refused():
    with pytest.raises(DataError, match="no pixel"):
        draw_defect(
            coloured(16, 16), plans(1)[0], np.random.default_rng(0), inside=np.zeros((16, 16), bool)
        )


def test_noise_is_about_0():
    values = noise((200, 150), 12, np.random.default_rng(0))
    assert values.shape == (200, 150)
    assert abs(values.mean()) < 0.2
    assert 0.2 < values.std() < 0.9
