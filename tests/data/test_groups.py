import pytest

from dfm_mlflow.data.groups import expression_for, groups_of
from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError


def items(*paths):
    return [Item(p, "a", "train", "good") for p in paths]


@pytest.mark.parametrize(
    "names",
    [
        ["part{}_1.png", "part{}_2.png"],
        ["part{}.png", "part{} (2).png"],
        ["part{}.png", "part{}-copy.png"],
        ["part{}/left.png", "part{}/right.png"],
    ],
)
def test_names_that_tell_bursts_give_an_expression_that_groups_them(names):
    paths = [f"/data/good/{name.format(i)}" for i in range(6) for name in names]
    numbers = [i for i in range(6) for _ in names]
    pattern = expression_for(paths, numbers)
    assert pattern is not None
    found = groups_of(pattern, items(*paths))
    assert [found.index(g) for g in found] == [numbers.index(k) for k in numbers]


def test_names_that_tell_nothing_give_none():
    paths = [f"/data/good/{i:03d}.png" for i in range(12)]
    assert expression_for(paths, [i % 6 for i in range(12)]) is None
    # all in one folder, which would be one group for six
    paths = [f"/data/good/{i:03d}.png" for i in range(12)]
    assert expression_for(paths, [i // 2 for i in range(12)]) is None


def test_a_list_names_groups_and_leaves_others_alone(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("path,group\n/d/1.png,x\n2.png,x\ntest/9.png,y\n")
    found = groups_of(str(table), items("/d/1.png", "/d/2.png", "/d/3.png"))
    assert found == ["x", "x", "/d/3.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\n/d/1.png\n", "lacks the column group"),
        ("path,group\n/d/9.png,x\n", "names no training picture, such as /d/1.png"),
        ("path,group\n1.png,x\n", "2 training pictures end in 1.png"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "groups.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        groups_of(str(tmp_path / "groups.csv"), items("/d/1.png", "/e/1.png"))
