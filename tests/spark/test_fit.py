"""Training with the features in executors of a real local Spark."""

import mlflow
import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.config import Options, SweepOptions
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.tune import tune
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.depths import extract_settled
from dfm_mlflow.spark import fit
from dfm_mlflow.spark.fit import Recipe, SparkPasses, fit_on_spark

from ..conftest import texture, write_category
from ..detectors import pictures

SMALL = {
    "weights": "random",
    "image_size": "64",
    "backbone": "resnet18",
    "cache": "false",
    "category": "stripes,bands",
    "registered_model": "none",
}


def options(data, **more):
    return Options.parse({"data": str(data), **SMALL, **more})


@pytest.fixture(autouse=True)
def _features_stay_where_they_are(monkeypatch):
    """As those of many pictures do; of these few a driver would have them come."""
    monkeypatch.setattr(fit, "MOST_BROUGHT", 0)


@pytest.mark.slow
@pytest.mark.parametrize("brought", [0, fit.MOST_BROUGHT])
def test_a_run_on_spark_equals_one_on_this_machine(spark, store, tmp_path, monkeypatch, brought):
    """Two classes: one with more pictures than features, whose moments are merged, one with fewer.

    Its numbers of partitions follow the cores; ``passes/test_fit.py`` deals pictures in all ways.
    """
    monkeypatch.setattr(fit, "MOST_BROUGHT", brought)
    write_category(tmp_path / "data", "stripes", 0, n_train=80)
    write_category(tmp_path / "data", "bands", 1)
    given = {"layers": "layer1", "pooling": "16", "pca_level": "0.9"}
    here, there = (
        train(options(tmp_path / "data", engine=engine, **given)) for engine in ("local", "spark")
    )
    new = pictures(6, seed=5) + pictures(4, seed=6, defect=True)
    ours, theirs = there.detector.score(new), here.detector.score(new)
    for name in ("anomaly_score", "fre", "nll"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
    assert list(ours["predicted_class"]) == list(theirs["predicted_class"])
    np.testing.assert_array_equal(ours["p_value"], theirs["p_value"])
    # maps of one cell are ties but for rounding, which pixel metrics would rank
    other = ("seconds", "per_second", "megabytes", "pixel_auroc", "pixel_aupro")
    mine, known = (
        {k: v for k, v in r.metrics.items() if not k.endswith(other)} for r in (there, here)
    )
    assert mine == pytest.approx(known, rel=1e-6)
    runs = [mlflow.get_run(r.run_id) for r in (here, there)]
    digests = [run.inputs.dataset_inputs[0].dataset.digest for run in runs]
    assert digests[0] == digests[1]
    assert runs[1].data.params["resolved_engine"] == "spark"


@pytest.mark.slow
def test_pictures_in_s3_are_read_by_executors_and_bad_ones_left_out(
    spark, store, s3_store, mvtec_like, caplog
):
    uri = s3_store.upload(mvtec_like / "stripes", "mvtec/stripes").rpartition("/")[0]
    s3_store.put("mvtec/stripes/train/good/999.png", b"no picture")
    given = {"category": "stripes", "layers": "layer1", "pooling": "64", "engine": "spark"}
    result = train(options(uri, **given))
    assert (result.metrics["n_train"], result.metrics["n_unreadable"]) == (24, 1)
    assert "Left out s3://" in caplog.text
    for i in range(3):
        s3_store.put(f"mvtec/stripes/train/good/99{i}.png", b"no picture")
    with pytest.raises(DataError, match="training pictures cannot be read"):
        train(options(uri, **given))


def test_what_runs_on_one_machine_only_refuses_spark(tmp_path):
    with pytest.raises(ConfigError, match="engine=spark is not known to tune"):
        tune(options(tmp_path, engine="spark"))
    with pytest.raises(ConfigError, match="engine=spark is not known to sweep"):
        SweepOptions.parse({"engine": "spark"}).check()


def test_a_worker_keeps_an_extractor_by_the_region_s_content_not_by_its_file():
    region = np.zeros((8, 9), dtype=bool)
    region[2:5, 3:6] = True
    about = ("{}", ("layer1",), b"state")

    def recipe(roi):
        return Recipe(*about, roi, "cpu", "fp32", "fingerprint", "1")

    same = recipe(region.copy())
    assert recipe(region) == same
    assert hash(recipe(region)) == hash(same)
    for other in (~region, region.T.copy(), region.reshape(9, 8), None):
        assert recipe(other) != same  # the path in the options is what it was
    assert recipe(None) == recipe(None)


def test_executors_learn_the_depth_and_read_again_where_the_guess_was_wrong(spark, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):  # one bright picture among many that look like 10-bit data
        values = texture(rng)[:, :, 0].astype(np.uint16) << (4 if i == 39 else 2)
        Image.fromarray(values).save(tmp_path / f"{i:02d}.png")
    paths = sorted(tmp_path.iterdir())
    items = [Item(path, "stripes", "train", "good") for path in paths]
    given = Options.parse(SMALL | {"category": "stripes", "layers": "layer1", "pooling": "16"})
    extractor, weights, resolved = build_extractor(given.resolve(), items)
    assert extractor.decoder.depth.bits == 10
    there, _, extraction = fit_on_spark(
        resolved, extractor, items, weights, lambda _: None, session=spark
    )
    known, here = extract_settled(extractor, paths)
    assert there.extractor.decoder == known.decoder
    assert known.decoder.depth.bits == 12
    assert extraction.words == here.words
    local = AnomalyDetector.fit(resolved, known, here, ["stripes"] * 40, weights)
    np.testing.assert_allclose(there.score(paths)["fre"], local.score(paths)["fre"], rtol=1e-5)


def test_what_is_looked_up_joins_what_is_kept_block_by_block(spark):
    numbers = list(range(10))
    kept = SparkPasses(spark.sparkContext.parallelize(numbers, 3)).derive(lambda n: n)
    tens, squares = kept.look_up(lambda n: 10 * n), kept.derive(lambda n: n * n)
    both = tens.join(kept.look_up(str), lambda a, b: (a, b))
    assert both.rdd is kept.rdd  # no pass of its own
    assert list(both.kept().each(lambda pair: pair)) == [(10 * n, str(n)) for n in numbers]
    for a, b, expected in (
        (tens, squares, [(10 * n, n * n) for n in numbers]),
        (squares, tens, [(n * n, 10 * n) for n in numbers]),
    ):
        joined = a.join(b, lambda x, y: (x, y))
        assert list(joined.each(lambda pair: pair)) == expected
        assert joined.total(sum, int.__add__) == sum(map(sum, expected))
    both.drop()
    assert kept.rdd.is_cached  # what it looked into stays
    assert list(tens.look_up(lambda n: n + 1).each(str)) == [str(10 * n + 1) for n in numbers]
