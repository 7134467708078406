"""Recognising the bits that a camera filled, as mathematics of values alone."""

import numpy as np
import pytest

from dfm_mlflow.images.depth import BYTES, FULL, KNOWN, Depth, Words, depth_of, words_of

RNG = np.random.default_rng(0)


def camera(bits, shift=0, n=20, top=1.0):
    """Words of n pictures of a camera of so many bits, whose values end at a share of its range."""
    pictures = (
        RNG.integers(0, int(top * (2**bits - 1)) + 1, (40, 50)).astype(np.uint16) << shift
        for _ in range(n)
    )
    return [words_of(p) for p in pictures]


def test_words_are_the_largest_value_and_all_bits_of_any_shape():
    values = np.array([[1, 8], [0, 4]], np.uint16)
    for given in (values, values[:, ::-1], values.T, np.repeat(values[..., None], 3, 2)):
        assert words_of(given) == (8, 13)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("top", [1.0, 0.6])
def test_data_in_the_lower_bits_are_recognised_by_their_largest_value(bits, top):
    depth = depth_of(camera(bits, top=top))
    assert (depth.bits, depth.shift, depth.white) == (bits, 0, 2**bits - 1)
    assert f"hold {bits}-bit data in 16-bit words" in depth.sentence()


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_data_in_the_upper_bits_are_recognised_by_their_lowest(bits):
    depth = depth_of(camera(bits, 16 - bits))
    assert (depth.bits, depth.shift, depth.white) == (bits, 16 - bits, FULL)
    assert f"hold {bits}-bit data in the upper bits of 16-bit words" in depth.sentence()


def test_one_bright_picture_among_all_decides():
    words = camera(10, n=200)
    assert depth_of(words).bits == 10
    assert depth_of([*words, Words(4000, 4095)]).bits == 12
    assert depth_of([]) == BYTES


@pytest.mark.parametrize("bits", KNOWN)
def test_what_is_stated_settles_it(bits):
    assert depth_of(camera(10), bits) == Depth(bits, 0, 0)
    assert "as bits= says" in depth_of(camera(10), bits).sentence()
    if bits < 16:  # whether upper or lower bits are filled is still looked for
        assert depth_of(camera(bits, 16 - bits), bits) == Depth(bits, 16 - bits, 0)


@pytest.mark.parametrize("mine", KNOWN)
@pytest.mark.parametrize("theirs", KNOWN)
def test_another_depth_is_refused_and_the_same_is_not(mine, theirs):
    depth = depth_of(camera(mine))
    refusals = [depth.refusal(words) for words in camera(theirs)]
    assert all((why is None) == (mine == theirs) for why in refusals)
    for why in refusals:
        if why:
            assert f"{theirs}-bit data" in why
            assert f"knows {mine}-bit data" in why
            assert "bits=" in why


def test_a_picture_may_be_half_as_bright_as_the_darkest_and_is_told_from_another_depth():
    depth = depth_of(camera(12, top=0.9))
    assert depth.refusal(Words(1900, 2047)) is None
    assert depth.refusal(Words(900, 1023)) is not None  # as 10-bit data would be
    assert Depth(12).refusal(Words(3, 3)) is None  # stated: as dark as it likes


def test_shifted_data_may_be_dark_and_unshifted_are_told_from_them():
    depth = depth_of(camera(12, 4))
    assert depth.refusal(Words(16, 16)) is None  # a dark picture of the same camera
    assert "12-bit data" in depth.refusal(camera(12, n=1)[0])
    assert depth.refusal(camera(16, n=1)[0]) is None  # white is white


def test_files_of_8_bits_are_whole_words():
    assert BYTES.white == FULL
    assert BYTES.refusal(camera(16, n=1)[0]) is None
    for bits in (8, 10, 12, 14):
        assert BYTES.refusal(camera(bits, n=1)[0]) is not None
        assert BYTES.refusal(camera(bits, 16 - bits, n=1)[0]) is None
