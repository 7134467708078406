import numpy as np
import pytest

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.folder import Naming
from dfm_mlflow.data.manifest import read_list
from dfm_mlflow.errors import DataError

HEADER = "path,split,label,mask,class,group\n"


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest beside pictures 0.png ... 9.png, whose content no catalog looks at."""
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]))

    def write(rows, header=HEADER, encoding="utf-8"):
        path = tmp_path / "list.csv"
        path.write_text(header + rows, encoding=encoding)
        return str(path)

    return write


GOOD_ROWS = "0.png,train,good,,,\n1.png,train,good,,,\n"


def test_rows_become_items(manifest, tmp_path):
    address = manifest(GOOD_ROWS + '"2.png",test,"bent, left",3.png,,lot 7\n4.png,test,good,,a,\n')
    catalog = load_catalog(address, ["a"])
    assert catalog.source == address
    assert [i.path for i in catalog.train] == [tmp_path / "0.png", tmp_path / "1.png"]
    bent, good = catalog.test
    assert (bent.label, str(bent.mask), bent.group) == (
        "bent, left",
        str(tmp_path / "3.png"),
        "lot 7",
    )
    assert (good.label, good.mask, good.group, good.category) == ("good", None, None, "a")
    assert len(catalog.digest) == 16


def test_required_columns_are_enough_in_any_order_and_from_a_spreadsheet(manifest, caplog):
    rows = "good,0.png, train ,x\r\ngood,1.png,train,y\r\n"
    catalog = load_catalog(manifest(rows, "label,path, split,operator\r\n", "utf-8-sig"), ["a"])
    assert len(catalog.train) == 2
    assert "further columns, which are not used: operator" in caplog.text


def test_only_rows_of_the_asked_categories_are_used(manifest):
    rows = "".join(f"{i}.png,train,good,,{'ab'[i % 2]},\n" for i in range(8))
    rows += "missing.png,train,good,,c,\n"  # not asked for, so not looked at
    address = manifest(rows)
    assert [i.path.name for i in load_catalog(address, ["b"]).items] == [
        "1.png",
        "3.png",
        "5.png",
        "7.png",
    ]
    assert [i.category for i in load_catalog(address, ["b", "a"]).items] == list("abababab")
    with pytest.raises(DataError, match=r"no rows of the class d: it has a, b, c\."):
        load_catalog(address, ["d"])


def test_labels_alone_are_enough_to_evaluate(manifest):
    address = manifest("0.png,test,good,,,\n1.png,test,hole,,,\n")
    assert len(load_catalog(address, ["a"], to_fit=False).test) == 2
    with pytest.raises(DataError, match="2 test pictures and none to fit on"):
        load_catalog(address, ["a"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("5.png,val,good,,,\n", "line 4: split=val: give train or test"),
        ("5.png,train,hole,,,\n", "line 4: a picture labelled hole is to be trained on"),
        ("5.png,,good,,,\n", "line 4: split is empty"),
        (",test,,,,\n", "line 4: path, label is empty"),
        ("none.png,test,good,,,\n", "line 4: the file .*none.png does not exist"),
        ("5.png,test,hole,none.png,,\n", "line 4: the file .*none.png does not exist"),
        (".,test,good,,,\n", "line 4: the file .* does not exist"),
        ("5.png,test,good\n", "line 4: the number of cells"),
        ("5.png,test,bent, left,,,\n", "line 4: the number of cells .* quote"),
        ("5.png,test,good,,,\n./0.png,test,good,,,\n", "line 5: .*0.png is already in line 2"),
        ('5.png,test,"go"od,,,\n', "line 4: .* save the table as CSV"),
        ('5.png,test,"good,,,\n', "line 4: unexpected end"),
        ("\n\n5.png,val,good,,,\n", "line 6: split=val"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(manifest, rows, words):
    with pytest.raises(DataError, match=words) as caught:
        load_catalog(manifest(GOOD_ROWS + rows), ["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("path,label\n", "lacks the column split: .* path, split, label and may name mask"),
        ("path;split;label\n", "lacks the column path, split, label: .* separated by commas"),
        ("", "lacks the column"),
        ("path,split,label,path\n", "names a column twice"),
    ],
)
def test_a_wrong_header_is_refused(manifest, header, words):
    with pytest.raises(DataError, match=words):
        load_catalog(manifest("" if not header else GOOD_ROWS, header), ["a"])


def test_an_empty_class_among_several_is_refused(manifest):
    with pytest.raises(DataError, match="line 2: the class is empty and several"):
        load_catalog(manifest(GOOD_ROWS), ["a", "b"])


def test_an_unreadable_manifest_is_one_sentence(tmp_path, manifest):
    with pytest.raises(DataError, match="none.csv cannot be read"):
        load_catalog(str(tmp_path / "none.csv"), ["a"])
    (tmp_path / "latin.csv").write_bytes(b"path,split,label\n\xe4.png,train,good\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        load_catalog(str(tmp_path / "latin.csv"), ["a"])
    with pytest.raises(DataError, match="no rows of the class a: it has no rows at all"):
        load_catalog(manifest(""), ["a"])


def test_options_take_a_manifest_and_s3():
    for data in ("list.csv", "s3://bucket/x", "s3://bucket/list.csv"):
        assert Options.parse({"data": data}).resolve().data == data
    weights = "s3://bucket/w.safetensors"
    assert Options.parse({"weights": weights}).resolve().weights == weights


# -- rows in S3 ------------------------------------------------------------------------------------


def test_local_rows_and_rows_in_s3_side_by_side(s3_store, manifest, tmp_path):
    uris = [s3_store.put(f"far/{i}.png", bytes([i])) for i in range(3)]
    rows = GOOD_ROWS + f"{uris[0]},train,good,,,\n{uris[1]},test,hole,{uris[2]},,\n"
    catalog = load_catalog(manifest(rows), ["a"])
    assert [str(i.path) for i in catalog.items] == [
        str(tmp_path / "0.png"),
        str(tmp_path / "1.png"),
        *uris[:2],
    ]
    assert catalog.items[3].mask.files[0].read_bytes() == bytes([2])


def test_a_manifest_in_s3_has_rows_beside_it(s3_store, tmp_path):
    for i in range(3):
        s3_store.put(f"lists/pictures/{i}.png", bytes([i]))
    above = s3_store.put("above.png", b"x")
    (tmp_path / "local.png").write_bytes(b"y")
    rows = "pictures/0.png,train,good\n./pictures/1.png,train,good\n../above.png,test,good\n"
    rows += f"{tmp_path}/local.png,test,good\n"
    uri = s3_store.put("lists/all.csv", f"path,split,label\n{rows}".encode())
    items = load_catalog(uri, ["a"]).items
    assert [i.path.read_bytes() for i in items] == [b"\x00", b"\x01", b"x", b"y"]
    assert str(items[2].path) == above


def test_a_missing_object_is_named_by_its_line(s3_store, manifest):
    uri = f"s3://{s3_store.bucket}/none.png"
    with pytest.raises(DataError, match=f"line 4: {uri} does not exist"):
        load_catalog(manifest(GOOD_ROWS + f"{uri},test,good,,,\n"), ["a"])
    with pytest.raises(DataError, match=f"^{uri[:-3]}csv does not exist"):
        load_catalog(uri[:-3] + "csv", ["a"])


def test_many_rows_are_looked_up_in_parallel(s3_store, manifest):
    s3_store.put("0.png", b"x")
    uris = [s3_store.put(f"far/{i}.png", np.int64(i).tobytes()) for i in range(40)]
    rows = "".join(f"{uri},train,good,,,\n" for uri in uris)
    assert [str(i.path) for i in load_catalog(manifest(rows), ["a"]).items] == uris


@pytest.mark.parametrize("good", ["good", "Good", "OK", "ok", "normal"])
def test_every_word_for_good_is_one_label(manifest, good):
    rows = f"0.png,train,{good},,,\n1.png,train,{good},,,\n2.png,test,{good},,,\n3.png,test,x,,,\n"
    catalog = load_catalog(manifest(rows), ["a"])
    assert [i.label for i in catalog.items] == ["good", "good", "good", "x"]


def test_0_is_good_only_beside_1_and_what_may_be_either_is_refused(manifest):
    rows = "0.png,train,0,,,\n1.png,train,0,,,\n"
    catalog = load_catalog(manifest(rows + "2.png,test,1,,,\n"), ["a"])
    assert [i.label for i in catalog.items] == ["good", "good", "1"]
    with pytest.raises(DataError, match="line 2: the label 0 may mean .*: give good=0"):
        load_catalog(manifest(rows), ["a"])
    passed = manifest(GOOD_ROWS + "2.png,test,pass,,,\n")
    with pytest.raises(DataError, match="line 4: the label pass may .* good=pass or bad=pass"):
        load_catalog(passed, ["a"])
    assert load_catalog(passed, ["a"], naming=Naming.of(good="pass")).test[0].label == "good"
    assert load_catalog(passed, ["a"], naming=Naming.of(bad="pass")).test[0].label == "pass"


def test_a_row_may_have_several_masks_and_a_part(manifest, tmp_path):
    rows = "path,split,label,mask,part\n2.png,test,x,3.png|4.png,7\n5.png,test,good,,\n"
    items = load_catalog(manifest(rows, ""), ["a"], to_fit=False).items
    assert str(items[0].mask) == f"{tmp_path / '3.png'}|{tmp_path / '4.png'}"
    assert [i.part for i in items] == ["7", None]
    with pytest.raises(DataError, match="line 2: the file .*none.png does not exist"):
        load_catalog(manifest(rows.replace("4.png", "none.png"), ""), ["a"], to_fit=False)


def test_a_list_to_score_needs_only_paths(manifest, tmp_path):
    address = manifest("1.png,7\n0.png,\n", "path,part\n")
    assert read_list(address) == [(tmp_path / "1.png", "7"), (tmp_path / "0.png", None)]
    with pytest.raises(DataError, match="lacks the column path: its first line must name path"):
        read_list(manifest("1.png\n", "file\n"))
