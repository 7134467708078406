import pytest
from botocore.paginate import Paginator

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.store import S3Folder


def test_an_object_looks_like_a_path(s3_store):
    (found,) = S3Folder(s3_store.put("a/b/x.1.png", b"abc").rpartition("/")[0]).iterdir()
    assert str(found) == f"s3://{s3_store.bucket}/a/b/x.1.png"
    assert (found.name, found.stem, found.suffix) == ("x.1.png", "x.1", ".png")
    assert (found.parent.name, found.size) == ("b", 3)
    assert (found.is_file(), found.is_dir()) == (True, False)
    assert found.read_bytes() == store.read(found) == store.read(str(found)) == b"abc"
    assert found == store.find(str(found))


def test_folders_are_listed_once_and_walked_deeply(s3_store):
    for key in ("d/a.png", "d/sub/b.png", "d/sub/", "d/odd name+ü#?%20.png", "dd/c.png"):
        s3_store.put(key, key.encode())
    root = S3Folder(f"s3://{s3_store.bucket}/d/")
    assert sorted(p.name for p in root.iterdir()) == ["a.png", "odd name+ü#?%20.png", "sub"]
    assert (root / "sub").is_dir()
    assert not (root / "none").is_dir()
    listings = len(s3_store.requests)
    assert [p.name for p in (root / "sub").iterdir()] == ["b.png"]
    assert len(s3_store.requests) == listings
    assert [p.name for p in root.walk()] == ["a.png", "odd name+ü#?%20.png", "b.png"]
    assert {p.read_bytes() for p in root.walk()} == {
        f"d/{name}".encode() for name in ("a.png", "odd name+ü#?%20.png", "sub/b.png")
    }
    assert {p.name for p in S3Folder(f"s3://{s3_store.bucket}").iterdir()} == {"d", "dd"}


def test_more_than_one_page_is_listed(s3_store, monkeypatch):
    for i in range(5):
        s3_store.put(f"p/{i}.png", b"x")
    paginate = Paginator.paginate

    def by_two(self, **given):
        return paginate(self, **given, PaginationConfig={"PageSize": 2})

    monkeypatch.setattr(Paginator, "paginate", by_two)
    assert len(S3Folder(f"s3://{s3_store.bucket}/p").iterdir()) == 5
    assert sum("list-type" in path for _, path, _ in s3_store.requests) == 3


def test_the_same_catalog_from_a_folder_and_from_s3(s3_store, mvtec_like):
    uri = s3_store.upload(mvtec_like, "mvtec")
    local = load_catalog(str(mvtec_like), ["stripes", "bands"])
    remote = load_catalog(uri, ["stripes", "bands"])
    assert remote.source == uri

    def facts(catalog, root):
        return [
            (
                str(i.path).removeprefix(root),
                i.category,
                i.split,
                i.label,
                i.mask and str(i.mask).removeprefix(root),
            )
            for i in catalog.items
        ]

    assert facts(remote, uri) == facts(local, str(mvtec_like))
    assert remote.digest == local.digest
    read = len(s3_store.gets())
    assert read == len(remote.items)
    assert [i.path.read_bytes() for i in remote.items] == [i.path.read_bytes() for i in local.items]
    assert len(s3_store.gets()) == read  # from the cache
    flat = load_catalog(f"{uri}/stripes/train/good", ["stripes"])
    assert (len(flat.train), flat.test) == (24, [])


@pytest.mark.parametrize(
    ("prefix", "categories", "words"),
    [
        ("none", ["stripes"], "/none does not exist"),
        ("m", ["missing"], "neither the folder missing nor pictures .* stripes"),
        ("m", ["stripes", "other"], "no folder with pictures for other"),
    ],
)
def test_unusable_prefixes_are_refused(s3_store, prefix, categories, words):
    for i in range(2):
        s3_store.put(f"m/stripes/train/good/{i}.png", b"x")
    with pytest.raises(DataError, match=words):
        load_catalog(f"s3://{s3_store.bucket}/{prefix}", categories)


def test_a_missing_object_is_one_sentence(s3_store):
    uri = f"s3://{s3_store.bucket}/none.png"
    with pytest.raises(DataError, match=f"^{uri} does not exist"):
        store.read(uri)
    with pytest.raises(DataError, match="names a bucket"):
        store.find(f"s3://{s3_store.bucket}")
