import io
import re
import shutil
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest

from dfm_mlflow import cli
from dfm_mlflow.config import Options, SweepOptions
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.jobs import sweep as job
from dfm_mlflow.jobs.sweep import sweep
from dfm_mlflow.jobs.train import train
from dfm_mlflow.network.extractor import Extractor

from ..conftest import in_store

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SMALL = {"weights": "random", "image_size": "64", "backbone": "resnet18", "cache": "false"}
SMALL |= {"augment": "none"}
GRID = "pca_level=0.9,0.97;score=fre,nll"


def options(root, categories="stripes,bands", grid=GRID, **more):
    return SweepOptions.parse(
        SMALL | {"data": str(root), "categories": categories, "grid": grid} | more
    )


def runs(parent=None, **tags):
    query = " and ".join(f"tags.`{k.replace('_', '.')}` = '{v}'" for k, v in tags.items())
    found = mlflow.MlflowClient().search_runs(["0"], query, max_results=1000)
    return [r for r in found if parent in (None, r.data.tags.get("mlflow.parentRunId"))]


def children(parent):
    return runs(parent, dfm_job="sweep-child")


def text(run_id, name):
    return mlflow.artifacts.load_text(f"{mlflow.get_run(run_id).info.artifact_uri}/{name}")


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_store, mvtec_like):
    """A store with a sweep, made once."""
    folder = tmp_path_factory.mktemp("sweep")
    with in_store(empty_store, folder):
        return folder / "mlflow.db", sweep(options(mvtec_like))


@pytest.fixture
def swept(made, tmp_path):
    with in_store(made[0], tmp_path):
        yield made[1]


def test_one_child_a_category_and_configuration_with_the_numbers_of_train(swept, mvtec_like):
    found = children(swept.run_id)
    assert len(found) == 8
    one_of_each = {c.data.params["resolved_score"]: c for c in found}
    for child in one_of_each.values():
        params = {k.removeprefix("resolved_"): v for k, v in child.data.params.items()}
        given = {k: params[k] for k in ("category", "data", "pca_level", "score")}
        plain = train(Options.parse(SMALL | given | {"registered_model": "none"})).metrics
        shared = set(child.data.metrics) & set(plain)
        assert {
            "image_auroc",
            "image_auroc_nll",
            "threshold",
            "recall",
            "n_components",
            "image_auroc/hole",
            "effective_fpr",
            "n_train",
            "n_test",
            "n_unused_files",
        } <= shared
        for name in shared:
            assert child.data.metrics[name] == pytest.approx(plain[name], rel=1e-4), name
        assert {"layers", "backbone", "device", "precision"} <= set(params)
        assert params["layers"] == "layer2,layer3"
    assert mlflow.MlflowClient().search_registered_models() == []


def test_the_parent_holds_a_table_with_the_average_first(swept):
    result = swept
    table = pd.read_csv(io.StringIO(text(result.run_id, "image_auroc.csv")), index_col=0)
    assert list(table.columns) == ["Avg", "stripes", "bands"]
    assert list(table.index) == [
        f"pca_level={p}, score={s}" for p in ("0.9", "0.97") for s in ("fre", "nll")
    ]
    np.testing.assert_allclose(table["Avg"], table[["stripes", "bands"]].mean(axis=1))
    for child in children(result.run_id):
        label = "pca_level={resolved_pca_level}, score={resolved_score}".format(**child.data.params)
        category = child.data.params["resolved_category"]
        assert table.loc[label, category] == pytest.approx(child.data.metrics["image_auroc"])
    parent = mlflow.get_run(result.run_id)
    assert parent.data.metrics["best_mean_image_auroc"] == pytest.approx(table["Avg"].max())
    page = text(result.run_id, "report/report.html")
    assert re.search(r"<th>Avg</th><th>stripes</th><th>bands</th>", page)
    assert "| configuration | Avg | stripes | bands |" in text(result.run_id, "sweep.md")
    assert len(mlflow.load_table("image_auroc.json", run_ids=[result.run_id])) == 4
    assert len(parent.inputs.dataset_inputs) == 2


def test_pictures_go_through_the_network_once_for_all_configurations(
    store, mvtec_like, monkeypatch
):
    seen = []
    original = Extractor.extract

    def counted(self, sources, **kw):
        seen.append(len(sources))
        return original(self, sources, **kw)

    monkeypatch.setattr(Extractor, "extract", counted)
    grid = "layers=layer2|layer2,layer3;pooling=1,2;pca_level=0.9,0.97;normalize=none,position"
    result = sweep(options(mvtec_like, "stripes", grid))
    assert seen == [24, 14]
    assert len(children(result.run_id)) == 16
    label = "layers=layer2, pooling=2, pca_level=0.97, normalize=position"
    given = {
        "category": "stripes",
        "data": str(mvtec_like),
        "layers": "layer2",
        "pooling": "2",
        "pca_level": "0.97",
        "normalize": "position",
        "registered_model": "none",
    }
    plain = train(Options.parse(SMALL | given)).metrics
    assert result.tables["image_auroc"].loc[label, "stripes"] == pytest.approx(plain["image_auroc"])


def test_networks_of_their_own_where_they_differ(store, mvtec_like):
    result = sweep(options(mvtec_like, "stripes", "image_size=64,96;seed=1,2"))
    sizes = {
        (c.data.params["resolved_image_size"], c.data.params["resolved_seed"])
        for c in children(result.run_id)
    }
    assert sizes == {("64", "1"), ("64", "2"), ("96", "1"), ("96", "2")}
    assert not result.failures


@pytest.fixture
def broken(mvtec_like, tmp_path):
    root = tmp_path / "data"
    for name in ("stripes", "bands"):
        shutil.copytree(mvtec_like / name, root / name)
    (root / "empty/train/good").mkdir(parents=True)
    (root / "empty/test/hole").mkdir(parents=True)
    return root


def test_a_broken_category_stops_no_other_and_is_named(store, broken):
    result = sweep(options(broken, "stripes,empty,bands", "score=fre"))
    assert list(result.failures) == ["empty"]
    assert "empty" in str(result.error())
    parent = mlflow.get_run(result.run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["n_failed"] == 1
    statuses = [
        (c.data.params.get("resolved_category"), c.info.status) for c in children(result.run_id)
    ]
    assert statuses.count(("stripes", "FINISHED")) == statuses.count(("bands", "FINISHED")) == 1
    assert statuses.count((None, "FAILED")) == 1
    table = result.tables["image_auroc"]
    assert table["empty"].isna().all()
    np.testing.assert_allclose(table["Avg"], table[["stripes", "bands"]].mean(axis=1))
    assert "empty" in text(result.run_id, "report/report.html")


def test_the_command_fails_and_names_the_category(store, broken, monkeypatch, capsys):
    given = SMALL | {"data": str(broken), "categories": "empty,stripes", "grid": "score=fre"}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["dfm-mlflow", "sweep", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "| configuration | Avg | empty | stripes |" in printed.out
    assert "Error: 1 of the sweep's categories failed (empty:" in printed.err
    assert "Traceback" not in printed.err


class Interrupted(BaseException):
    """What no `except Exception` holds up, as Ctrl-C."""


def interrupt_after(n, monkeypatch):
    log, logged = job.SweepChildren.log, []

    def counted(children, *given):
        if len(logged) == n:
            raise Interrupted
        logged.append(given)
        log(children, *given)

    monkeypatch.setattr(job.SweepChildren, "log", counted)
    return logged


def test_an_interrupted_sweep_goes_on_where_it_stopped(store, mvtec_like, monkeypatch):
    def asked(**more):
        return options(mvtec_like, grid="score=fre,nll", **more)

    whole = sweep(asked(seed="3"))
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            sweep(asked())
    with monkeypatch.context() as patch:
        logged = interrupt_after(99, patch)
        result = sweep(asked())
    assert (result.n_resumed, len(logged)) == (3, 1)
    assert len(children(result.run_id)) == 4
    assert len(children(whole.run_id)) == 4  # other options, other sweep
    assert not result.tables["image_auroc"].isna().any(axis=None)
    again = sweep(asked())  # a finished one is not continued
    assert again.n_resumed == 0
    pd.testing.assert_frame_equal(again.tables["image_auroc"], result.tables["image_auroc"])


def test_a_category_that_was_put_right_is_all_that_is_left_to_do(store, broken, mvtec_like):
    asked = options(broken, "stripes,empty", "score=fre")
    assert sweep(asked).failures
    shutil.rmtree(broken / "empty")
    shutil.copytree(mvtec_like / "bands", broken / "empty")
    second = sweep(asked)
    assert second.n_resumed == 1
    assert not second.failures
    changed = broken / "stripes/train/good/000.png"
    changed.write_bytes((broken / "stripes/train/good/001.png").read_bytes())
    assert sweep(asked).n_resumed == 0


def test_good_pictures_alone_and_no_grid(store, mvtec_like):
    flat = SweepOptions.parse(
        SMALL | {"data": str(mvtec_like / "stripes/train/good"), "category": "stripes"}
    )
    result = sweep(flat)
    (child,) = children(result.run_id)
    assert "image_auroc" not in child.data.metrics
    assert child.data.metrics["n_test"] == 0
    assert result.tables["image_auroc"].isna().all(axis=None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grid": "colour=red"}, "not an option to sweep"),
        ({"grid": "category=a"}, "not an option to sweep"),
        ({"grid": "seed=1;seed=2"}, "appears twice"),
        ({"grid": "pca_level=2"}, "With pca_level"),
        ({"grid": "score=nll;aggregate=max"}, "needs a map"),
        ({"registered_model": "mine"}, "registers nothing"),
    ],
)
def test_a_grid_without_meaning_starts_no_run(store, mvtec_like, given, words):
    with pytest.raises(ConfigError, match=words):
        sweep(options(mvtec_like, **given))
    assert runs() == []
