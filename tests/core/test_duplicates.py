import numpy as np
import pytest
import torch

from dfm_mlflow.core import duplicates
from dfm_mlflow.core.duplicates import FEWEST, Likeness, sketch

LAYERS, WIDTH = 2, 128


def images(n, seed=0, dimension=600):
    """Features of n unrelated images whose brightness, one direction, varies most of all."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(size=dimension)
    rows = rng.normal(size=(n, dimension)) + 6 * rng.normal(size=(n, 1)) * common
    return (5 + rows).astype(np.float32)


def sketches(*rows):
    x = np.concatenate(rows)
    return np.stack([sketch(x, WIDTH, seed=j) for j in range(LAYERS)], axis=1)


def again(rows, share, seed=1):
    """The same images with noise of a share of what tells them apart."""
    return rows + share * np.random.default_rng(seed).normal(size=rows.shape).astype(np.float32)


def test_sketches_keep_inner_products():
    x = np.random.default_rng(0).normal(size=(20, 5000))
    found = np.mean([sketch(x, 256, s) @ sketch(x, 256, s).T for s in range(200)], axis=0)
    np.testing.assert_allclose(found, x @ x.T, atol=5 * 5000 / np.sqrt(256 * 200))


@pytest.mark.parametrize("dimension", [100, 256, 257, 5000])
def test_sketches_are_the_same_for_arrays_and_tensors(dimension):
    x = np.random.default_rng(0).normal(size=(3, dimension)).astype(np.float32)
    found = sketch(torch.from_numpy(x), 256, seed=7)
    np.testing.assert_allclose(found.numpy(), sketch(x, 256, seed=7), rtol=1e-5, atol=1e-4)
    assert found.shape == (3, 256)
    # rows are sketched alone
    np.testing.assert_array_equal(sketch(x[1:2], 256, seed=7), sketch(x, 256, seed=7)[1:2])


@pytest.mark.parametrize("n", [20, 300])
def test_unrelated_images_are_none_though_one_brightness_makes_them_alike(n):
    assert not len(Likeness(sketches(images(n))).within().found)


@pytest.mark.parametrize("n", [20, 300])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_noisy_copies_are_found_and_grouped(n, share):
    x = images(n)
    found = Likeness(sketches(x, again(x[:3], share), again(x[:1], share, 2))).within()
    assert set(found.found) == {0, 1, 2, n, n + 1, n + 2, n + 3}
    assert [found.of[n + 1], found.of[n + 2], found.of[1], found.of[2]] == [1, 2, n + 1, n + 2]
    assert found.groups[0] == found.groups[n] == found.groups[n + 3]
    assert len(set(found.groups)) == n
    assert (found.distance[found.found] < 0.35).all()
    assert np.isnan(found.distance[5])


def test_a_folder_of_nothing_but_bursts_is_found_too():
    x = images(40)
    found = Likeness(sketches(*(again(x, 0.2, s) for s in range(5)))).within()
    assert len(found.found) == 200
    np.testing.assert_array_equal(found.groups.reshape(5, 40), [found.groups[:40]] * 5)
    assert len(set(found.groups)) == 40


def test_images_of_another_set_are_held_against_what_is_usual_here():
    x, new = images(60), images(10, 5)
    of, distance = Likeness(sketches(x)).between(sketches(again(x[7:9], 0.2), new))
    assert list(of) == [7, 8, *[-1] * 10]
    assert np.isnan(distance[2:]).all()
    assert (distance[:2] < 0.1).all()


def test_neither_order_nor_the_block_size_matters(monkeypatch):
    x = sketches(images(50), again(images(50)[:5], 0.2))
    order = np.random.default_rng(3).permutation(55)
    whole = Likeness(x).within()
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    turned = Likeness(x[order]).within()
    place = np.argsort(order)
    np.testing.assert_array_equal(
        np.where(turned.of[place] >= 0, order[turned.of[place]], -1), whole.of
    )
    np.testing.assert_allclose(turned.distance[place], whole.distance, rtol=1e-3)


def test_few_and_equal_images_say_nothing_and_break_nothing():
    few = np.repeat(images(1), FEWEST - 1, axis=0)
    assert not len(Likeness(sketches(few)).within().found)
    equal = Likeness(sketches(np.repeat(images(1), 20, axis=0))).within()
    assert len(equal.found) == 20
    assert len(set(equal.groups)) == 1
