import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.groups import group_rows

ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from("abcdef")), min_size=1, max_size=40
).map(lambda rows: ([digest(k) for k, _ in rows], [g for _, g in rows]))


def digest(content):
    return hashlib.sha256(str(content).encode()).hexdigest()


def test_rows_with_equal_keys_are_one_group():
    numbers = group_rows(["x", "y", "x", "z"])
    assert numbers[0] == numbers[2]
    assert sorted(set(numbers)) == [0, 1, 2]


def test_a_copy_joins_the_groups_that_hold_it():
    numbers = group_rows(["x", "y", "x", "z", "w"], ["a", "a", "b", "b", "c"])
    assert len(set(numbers[:4])) == 1
    assert numbers[4] != numbers[0]


@given(ROWS)
def test_groups_are_the_connected_rows(rows):
    keys, groups = rows
    numbers = group_rows(keys, groups)
    same = np.equal.outer(keys, keys) | np.equal.outer(groups, groups)
    for _ in range(len(keys).bit_length()):
        same = (same.astype(int) @ same) > 0
    assert np.array_equal(same, np.equal.outer(numbers, numbers))


@given(ROWS, st.randoms(use_true_random=False))
def test_neither_order_nor_names_change_a_number(rows, random):
    keys, groups = rows
    order = list(range(len(keys)))
    random.shuffle(order)
    renamed = dict(zip("abcdef", "fedcba", strict=True))
    again = group_rows([keys[i] for i in order], [renamed[groups[i]] for i in order])
    assert np.array_equal(again, group_rows(keys, groups)[order])


def test_another_seed_gives_another_order():
    keys = [digest(i) for i in range(40)]
    assert not np.array_equal(group_rows(keys, seed=1), group_rows(keys, seed=2))
    assert sorted(group_rows(keys, seed=1)) == list(range(40))
