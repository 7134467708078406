import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.scores import parts
from dfm_mlflow.scores.parts import DONE, PLAN, OutputFolder, plan_parts
from dfm_mlflow.storage.store import S3Object

SOURCES = [Path(f"/line/day{i % 3}/{i:03d}.png") for i in range(40)]


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(str(tmp_path / "scores"))


def plan(folder, sources=SOURCES, model="m" * 64, least=6):
    return plan_parts(folder, sources, model, least)


@given(st.lists(st.text("abc/é ", min_size=1), min_size=1, max_size=60, unique=True))
def test_every_picture_is_in_one_part_whatever_stands_beside_it(names):
    sources = [Path(n) for n in dict.fromkeys(str(Path(n)) for n in names)]
    dealt = parts._deal(sources, 4)
    assert sorted(s for p in dealt for s in p.sources) == sorted(sources)
    alone = {s: parts._deal([s], 4)[0].number for s in sources}
    assert {s: p.number for p in dealt for s in p.sources} == alone


def test_a_part_is_named_by_its_pictures():
    one, again = (parts._deal(SOURCES, 3) for _ in range(2))
    assert one == again
    fewer = parts._deal(SOURCES[1:], 3)
    changed = {p.number for p in one} - {p.number for p in fewer if p in one}
    assert changed == {p.number for p in one if SOURCES[0] in p.sources}
    objects = [S3Object(f"s3://b/{i}.png", "etag", 1) for i in range(9)]
    before = {p.name for p in parts._deal(objects, 2)}
    objects[4] = S3Object("s3://b/4.png", "another", 1)
    assert len(before & {p.name for p in parts._deal(objects, 2)}) == 1


def test_what_is_there_is_done_and_what_no_longer_counts_goes(folder):
    first = plan(folder)
    assert first.finished == []
    assert sum(len(p.sources) for p in first.missing) == 40
    for part in first.missing[:2]:
        folder.write(part.name, b"scores")
    folder.write(DONE, b"")
    stale = f"{first.missing[2].name[:10]}-0000000000000000.parquet"
    folder.write(stale, b"scores of pictures that changed")
    again = plan(folder, least=1)  # the plan that is there counts
    assert (again.missing, again.finished) == (first.missing[2:], first.missing[:2])
    assert again.n_again == len(first.missing[2].sources)
    assert folder.names() == {PLAN, *(p.name for p in again.finished)}


FOREIGN = (
    "notes.txt",
    "part-00000.parquet",  # Spark's or somebody's
    "part-00000-0000000000000000.parquet.txt",
    "line2/_SUCCESS",
    "line2/_plan.json",
    "line2/part-00000-0000000000000000.parquet",
)


def assert_nothing_foreign_is_removed(folder, write, read):
    first = plan(folder)
    for part in first.missing:
        folder.write(part.name, b"scores")
    folder.write(DONE, b"")
    for name in FOREIGN:
        write(name, name.encode())
    again = plan(folder, SOURCES[:20])  # nearly every part is another one now
    assert again.missing
    assert again.n_again > 0
    assert {name: read(name) for name in FOREIGN} == {name: name.encode() for name in FOREIGN}
    assert DONE not in folder.names()
    expected = {part.name for part in again.finished} | {PLAN} | {f.split("/")[0] for f in FOREIGN}
    assert folder.names() == expected


def test_nothing_foreign_is_removed_from_a_folder(folder, tmp_path):
    root = tmp_path / "scores"

    def write(name, data):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)

    assert_nothing_foreign_is_removed(folder, write, lambda name: (root / name).read_bytes())


def test_nothing_foreign_is_removed_from_a_prefix(s3_store):
    def write(name, data):
        s3_store.client.put_object(Bucket=s3_store.bucket, Key=f"scores/{name}", Body=data)

    def read(name):
        found = s3_store.client.get_object(Bucket=s3_store.bucket, Key=f"scores/{name}")
        return found["Body"].read()

    folder = OutputFolder(f"s3://{s3_store.bucket}/scores/")
    assert_nothing_foreign_is_removed(folder, write, read)


def test_a_part_belongs_to_size_and_time_of_change(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        path.write_bytes(b"1234")
    before = {p.name for p in parts._deal(paths, 2)}
    paths[0].write_bytes(b"12345")
    os.utime(paths[0], ns=(0, 0))
    larger = {p.name for p in parts._deal(paths, 2)}
    os.utime(paths[0], ns=(0, 1))
    later = {p.name for p in parts._deal(paths, 2)}
    assert len(before & larger) == len(larger & later) == 1


def test_a_plan_has_no_more_parts_than_pictures(folder):
    plan(folder, SOURCES[:3], least=8)
    assert json.loads(folder.read(PLAN))["parts"] == 3


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"format": 1, "model": "other", "parts": 2}, "scores of another model"),
        ({"format": 2, "model": "m" * 64, "parts": 2}, "not a plan of this version"),
        ({"format": 1, "model": "m" * 64, "parts": 0}, "not a plan of this version"),
        ({"format": 1, "model": "m" * 64, "parts": "many"}, "not a plan of this version"),
        ({"format": 1}, "not a plan of this version"),
        ([], "not a plan of this version"),
    ],
)
def test_a_plan_that_is_none_of_ours_is_refused_and_stays(folder, written, words):
    folder.write(PLAN, json.dumps(written).encode())
    with pytest.raises(ConfigError, match=words):
        plan(folder)
    assert json.loads(folder.read(PLAN)) == written


def test_a_folder_of_other_files_is_refused(folder):
    folder.write("notes.txt", b"mine")
    with pytest.raises(ConfigError, match=r"holds other files, such as notes\.txt"):
        plan(folder)
    folder.remove("notes.txt")
    folder.remove("notes.txt")  # it may be gone already
    assert folder.names() == set()
