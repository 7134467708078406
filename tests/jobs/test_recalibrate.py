import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

import dfm_mlflow
from dfm_mlflow.artifact.save_load import STATISTICS
from dfm_mlflow.cli import cli
from dfm_mlflow.config import RecalibrateOptions
from dfm_mlflow.errors import ArtifactError, ConfigError, DataError
from dfm_mlflow.jobs import recalibrate as job
from dfm_mlflow.jobs.recalibrate import recalibrate
from dfm_mlflow.jobs.train import train
from dfm_mlflow.mlflow_plugin.golden import load_golden

from .test_evaluate import new_pictures
from .test_train import options

pytestmark = pytest.mark.integration  # whole jobs, one after the other

PARENT = "models:/dfm-stripes/1"


def ask(images, model=PARENT, **given):
    return recalibrate(RecalibrateOptions.parse({"model": model, "images": str(images), **given}))


def statistics(version):
    folder = mlflow.artifacts.download_artifacts(f"models:/dfm-stripes/{version}")
    return load_file(Path(folder) / "dfm" / STATISTICS)


def versions():
    return [int(v.version) for v in mlflow.MlflowClient().search_model_versions("")]


def test_a_darker_lamp_needs_new_thresholds_and_no_new_model(trained, tmp_path):
    lamp = Path(new_pictures(tmp_path / "dark", n=120, darker=0.1))
    unseen = tmp_path / "unseen"
    unseen.mkdir()
    for path in sorted(lamp.iterdir())[60:]:
        path.rename(unseen / path.name)
    mlflow.MlflowClient().set_registered_model_alias("dfm-stripes", "production", 1)
    images = sorted(unseen.iterdir())
    before = dfm_mlflow.load_model(PARENT).score(images)
    assert before["is_anomaly"].mean() > 0.5

    result = ask(lamp, model="models:/dfm-stripes@production")
    assert result.registered_uri == "models:/dfm-stripes/2"
    now = dfm_mlflow.load_model(result.registered_uri).score(images)
    assert now["is_anomaly"].mean() < 0.2  # 0.1 is promised
    same = ["anomaly_score", "fre", "nll"]
    np.testing.assert_array_equal(now[same], before[same])

    old, new = statistics(1), statistics(2)
    assert old.keys() == new.keys()
    changed = {k for k in old if old[k].shape != new[k].shape or (old[k] != new[k]).any()}
    maps = {f"0.{j}.leading" for j in range(5)}  # of each layer and scale
    assert changed == {"0.held_out", "0.correlation", "0.light", *maps}
    scale = [d.classes[0].map_scale for d in (trained.detector, result.detector)]
    assert scale[1] > scale[0]
    still_found = result.detector.score([_with_hole(images[0])])
    assert still_found["is_anomaly"].all()


def _with_hole(path):
    from PIL import Image

    image = np.array(Image.open(path))
    image[20:40, 20:40] = 10
    return image


def test_the_run_says_what_was_done(trained, tmp_path):
    result = ask(new_pictures(tmp_path / "dark", n=30, darker=0.1))
    run = mlflow.get_run(result.run_id)
    assert (run.info.run_id != trained.run_id, run.info.status) == (True, "FINISHED")
    metrics = run.data.metrics
    (then,), (now,) = (d.thresholds().values() for d in (trained.detector, result.detector))
    assert metrics["threshold_before"] == pytest.approx(then)
    assert metrics["threshold"] == pytest.approx(now)
    assert metrics["n_calibration"] == 30
    assert metrics["effective_fpr"] == 0.1
    assert run.data.params["resolved_model"] == PARENT
    assert run.data.tags["dfm.recalibrated_from"] == PARENT
    assert "from 30 new good pictures." in run.data.tags["calibration"]
    (used,) = run.inputs.dataset_inputs
    assert [t.value for t in used.tags] == ["calibration"]
    version = mlflow.MlflowClient().get_model_version("dfm-stripes", "2")
    assert (version.run_id, version.tags["dfm.recalibrated_from"]) == (result.run_id, PARENT)
    assert len(load_golden(result.run_id))  # so that it can be promoted
    # and once more, from the new version
    again = ask(tmp_path / "dark", model="models:/dfm-stripes/2")
    assert again.metrics["threshold"] == again.metrics["threshold_before"]


def test_command_prints_both_thresholds(trained, tmp_path):
    folder = new_pictures(tmp_path / "dark", n=8, darker=0.1)
    done = CliRunner().invoke(cli, ["recalibrate", PARENT, "--images", folder])
    assert done.exit_code == 0, done.output
    then, now = (
        f"{m:.4g}"
        for m in (
            trained.metrics["threshold"],
            dfm_mlflow.load_model("models:/dfm-stripes/2").thresholds()["stripes"],
        )
    )
    said = " ".join(done.output.split())
    assert f"The threshold of stripes was {then}, which flags" in said
    assert f"and is {now} now." in said
    assert (
        "from 8 new good pictures; the target false-positive rate 0.1 needs 9 good pictures" in said
    )  # too few is said


def test_pictures_that_were_fitted_are_refused_by_their_contents(trained, mvtec_like, tmp_path):
    for force in ({}, {"force": "true", "reason": "really"}):
        with pytest.raises(DataError, match="was fitted to 24 of 24 pictures, .* never saw"):
            ask(mvtec_like, category="stripes", **force)
    mixed = Path(new_pictures(tmp_path / "mixed", n=30))
    shutil.copy(mvtec_like / "stripes/train/good/003.png", mixed / "any name.png")
    with pytest.raises(DataError, match=r"fitted to 1 of 31 pictures, such as .*any name\.png"):
        ask(mixed)
    assert versions() == [1]
    fresh = ask(new_pictures(tmp_path / "new", n=30), registered_model="none")
    assert len(fresh.sentences) == 2
    again = ask(tmp_path / "new", model=fresh.model_uri, registered_model="none")
    assert again.detector.fitted == trained.detector.fitted  # a copy of a copy knows them, too


def test_pictures_that_score_as_fitted_ones_are_refused_unless_a_reason_is_given(
    trained, mvtec_like, tmp_path
):
    """Encoded again, so that no digest is known, and with a few new ones among them."""
    folder = Path(new_pictures(tmp_path / "few", n=2))
    for path in sorted((mvtec_like / "stripes/train/good").iterdir()):
        with Image.open(path) as image:
            image.save(folder / f"again-{path.stem}.bmp")
    with pytest.raises(DataError, match="of the pictures score as low as .* force=true"):
        ask(folder)
    assert versions() == [1]
    with pytest.raises(ConfigError, match="force=true needs a reason"):
        ask(folder, force="true")
    forced = ask(folder, force="true", reason="the lamp is darker")
    assert "taken all the same: the lamp is darker" in forced.sentences[-1]
    assert mlflow.get_run(forced.run_id).data.params["resolved_reason"] == "the lamp is darker"
    version = mlflow.MlflowClient().get_model_version("dfm-stripes", "2")
    assert "taken all the same" in version.description
    assert version.tags["dfm.fpr"] == "0.1"


def test_a_failure_leaves_the_registry_as_it_was(trained, tmp_path, monkeypatch):
    good = new_pictures(tmp_path / "good", n=5)
    one = Path(new_pictures(tmp_path / "one", n=1))
    with pytest.raises(DataError, match="has 1 good pictures"):
        ask(one)
    (one / "broken.png").write_bytes(b"noise")
    with pytest.raises(DataError, match="1 of 2 calibration pictures cannot be read"):
        ask(one)
    with pytest.raises(ConfigError, match="no category gears: it has stripes"):
        ask(good, category="gears")
    with pytest.raises(ArtifactError, match="names no model that is registered"):
        ask(good, model="models:/dfm-none@production")
    with pytest.raises(ConfigError, match="images"):
        RecalibrateOptions.parse({"model": PARENT})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(job, "log_golden", fail)
    with pytest.raises(OSError, match="disk full"):
        ask(good)
    assert versions() == [1]
    (registered,) = mlflow.MlflowClient().search_registered_models()
    assert registered.name == "dfm-stripes"


def test_one_of_several_classes(store, mvtec_like, tmp_path):
    both = train(options(mvtec_like, "stripes,bands", fpr="0.1"))
    dark = new_pictures(tmp_path / "dark", n=20, darker=0.1)
    model = "models:/dfm-stripes-bands/1"
    with pytest.raises(ConfigError, match="has the categories stripes, bands: name the one"):
        ask(dark, model=model)
    result = ask(dark, model=model, category="bands")
    then, now = both.detector.thresholds(), result.detector.thresholds()
    assert now["stripes"] == then["stripes"]
    assert now["bands"] > then["bands"]
    assert result.registered_uri == "models:/dfm-stripes-bands/2"
