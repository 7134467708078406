"""Names that try to be paths, markup or commands."""

import base64
import os
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from PIL import Image

import dfm_mlflow
from dfm_mlflow.config import Options, PromoteOptions, SweepOptions
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.train import train
from dfm_mlflow.serving.pyfunc import to_picture
from dfm_mlflow.storage import store
from dfm_mlflow.storage.store import S3Folder

from .conftest import examples, texture
from .drawing import drawn

FORMAT1 = Path(__file__).with_name("fixtures") / "format1"
PARTS = [
    "../",
    "..",
    "/",
    "\\",
    "~",
    ".",
    "$(touch pwned)",
    "`touch pwned`",
    ";",
    "|",
    "&",
    "*",
    "?",
    "'",
    '"',
    " ",
    "\n",
    "\0",
    "\x1b[2J",
    "%2e%2e%2f",
    "<b>",
    "é",
    "日本",
    "\u202e",
    "😀",
    ",",
    ":",
    "a",
    "good",
    "con",
    "-rf",
    "--data",
    "{{7*7}}",
    "${HOME}",
    "s3://b/",
    "file:///",
]
NAMES = st.one_of(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join), st.text())
# allowed as a category, and unpleasant in a shell, a page, a query or a format string
UGLY = "é 日本 $(touch pwned) `touch pwned`; rm -rf * | <script>x</script> {{7*7}} & \u202e😀 -rf"
UGLY = UGLY.replace("/", "")


@examples(120)
@given(name=NAMES)
def test_a_category_is_refused_or_names_one_folder_below_the_data(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp()
    try:
        options = Options.parse({"category": name})
    except ConfigError:
        return
    for category in options.categories:
        assert Path(os.path.normpath(root / category)).parent == root
        assert (root / category).name == category
    assert "/" not in options.model_name
    assert ".." not in options.model_name
    with pytest.raises((ConfigError, DataError)):
        load_catalog(str(root), options.categories)


@examples(200)
@given(name=NAMES)
def test_model_names_and_aliases_are_refused_or_no_paths(name):
    for model, key, more in (
        (Options, "registered_model", {}),
        (SweepOptions, "registered_model", {}),
        (PromoteOptions, "alias", {"model": "m", "version": "1"}),
    ):
        try:
            options = model.parse({key: name, **more})
        except ConfigError:
            continue
        assert not set(getattr(options, key)) & set("/:.%\"'")


def test_a_run_takes_unpleasant_names_as_they_are(store, tmp_path):
    rng = np.random.default_rng(0)
    for folder, n, defect in (
        ("train/good", 8, False),
        ("test/good", 3, False),
        (f"test/{UGLY}", 3, True),
    ):
        place = tmp_path / "data" / UGLY / folder
        place.mkdir(parents=True)
        for i in range(n):
            picture = Image.fromarray(texture(rng, defect=defect))
            picture.save(place / f"{i} ';$(touch pwned)&<b>.png")
    before = set(os.listdir(tmp_path))
    given = {
        "data": str(tmp_path / "data"),
        "category": UGLY,
        "weights": "random",
        "backbone": "resnet18",
        "image_size": "64",
        "layers": "layer1",
    }
    with mlflow.start_run(run_name="../../'; DROP TABLE runs; --"), drawn():
        result = train(Options.parse(given))
    assert set(os.listdir(tmp_path)) - before <= {"mlruns", "cache"}
    assert not list(tmp_path.rglob("pwned"))
    run = mlflow.get_run(result.run_id)
    assert run.info.run_name == "../../'; DROP TABLE runs; --"
    assert run.data.params["resolved_category"] == UGLY
    page = Path(mlflow.artifacts.download_artifacts(f"runs:/{result.run_id}/report/report.html"))
    assert "<script>" not in page.read_text()
    loaded = dfm_mlflow.load_model(result.registered_uri)
    assert loaded.class_names == (UGLY,)


def test_keys_with_dots_stay_in_their_bucket_and_in_the_cache(s3_store, tmp_path):
    data = {key: key.encode() for key in ("d/../../../etc/passwd.png", "d/..png", "d/a/../b.png")}
    for key, content in data.items():
        s3_store.put(key, content)
    found = S3Folder(f"s3://{s3_store.bucket}/d").walk()
    assert {o.uri.partition(f"{s3_store.bucket}/")[2]: store.fetch(o) for o in found} == data
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == len(data)
    assert all(p.is_relative_to(tmp_path / "cache/content") for p in files)
    assert all(set(p.name) <= set("0123456789abcdef") for p in files)


@pytest.fixture(scope="module")
def watched():
    """Files opened and hosts called while the list is not None; a hook cannot be removed."""
    state = {"seen": None}

    def hook(event, arguments):
        if state["seen"] is not None and event in (
            "open",
            "socket.connect",
            "socket.getaddrinfo",
            "os.system",
            "subprocess.Popen",
        ):
            state["seen"].append((event, str(arguments[0])))

    sys.addaudithook(hook)
    yield state
    state["seen"] = None


def test_a_request_never_makes_the_server_open_a_file_or_call_a_host(watched, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40)).save(secret)
    model = mlflow.pyfunc.load_model(str(FORMAT1 / "one-class"))
    model.predict(pd.DataFrame({"image": [secret.read_bytes()]}))  # what is loaded late is loaded
    for text in (
        str(secret),
        f"file://{secret}",
        "http://127.0.0.1:9/a.png",
        "s3://bucket/a.png",
        "data:image/png;base64,AAAA",
        "models:/x/1",
        f"../{secret.name}",
    ):
        for value in (text.encode(), base64.b64encode(text.encode())):
            watched["seen"] = []
            with pytest.raises(MlflowException, match="not a picture|empty") as caught:
                model.predict(pd.DataFrame({"image": [value]}))
            seen, watched["seen"] = watched["seen"], None
            assert caught.value.get_http_status_code() == 400
            assert [s for s in seen if s[0] != "open" or not s[1].endswith((".py", ".pyc"))] == []
        assert to_picture(text, files=False) != secret.read_bytes()
