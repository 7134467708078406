import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dfm_mlflow.artifact import BACKBONE, DETECTOR, STATISTICS, load_detector, save_detector, sha256
from dfm_mlflow.errors import ArtifactError

from .detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit({"dark": pictures(8, 1, shift=-60), "light": pictures(9, 2, shift=60)})


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "dfm"
    save_detector(detector, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "dfm")


def test_round_trip(detector, saved):
    loaded = load_detector(saved, device="cpu", expected_sha256=sha256(saved / DETECTOR))
    images = pictures(5, 9, defect=True)
    np.testing.assert_allclose(
        loaded.score(images)["anomaly_score"], detector.score(images)["anomaly_score"], rtol=1e-6
    )
    assert loaded.options == detector.options
    assert loaded.thresholds() == detector.thresholds()
    assert sorted(p.name for p in saved.iterdir()) == sorted([DETECTOR, STATISTICS, BACKBONE])


def test_a_region_of_interest_travels_with_the_model(tmp_path):
    roi = np.zeros((50, 70), dtype=bool)
    roi[10:40, 20:60] = True
    detector = fit(roi=roi)
    save_detector(detector, tmp_path / "dfm")
    loaded = load_detector(tmp_path / "dfm", device="cpu")
    assert np.array_equal(loaded.extractor.roi, roi)
    images = pictures(3, 9)
    np.testing.assert_allclose(
        loaded.score(images)["fre"], detector.score(images)["fre"], rtol=1e-6
    )


def test_a_calibration_on_other_pictures_than_the_fitted_ones(detector, tmp_path):
    features = detector.extractor.extract(pictures(5, 9, shift=-60)).features
    save_detector(detector.recalibrated("dark", features), tmp_path / "dfm")
    loaded = load_detector(tmp_path / "dfm", device="cpu")
    (dark, light), (dark_before, light_before) = loaded.classes, detector.classes
    assert (len(dark.calibration.scores), dark.calibration.n_folds) == (5, 0)
    assert dark.layers[0].subspace.n_samples == dark_before.layers[0].subspace.n_samples == 8
    np.testing.assert_array_equal(light.calibration.scores, light_before.calibration.scores)
    assert "from 5 new good images of the smallest class;" in loaded.calibration_sentence()


def test_saving_never_overwrites_and_leaves_nothing_half_written(detector, saved, tmp_path):
    with pytest.raises(ArtifactError, match="exists already"):
        save_detector(detector, saved)
    broken = fit()
    object.__setattr__(broken.classes[0], "map_scale", float("nan"))
    with pytest.raises(ValueError, match="map_scale"):
        save_detector(broken, tmp_path / "dfm")
    assert list(tmp_path.iterdir()) == []


def edit(folder, change):
    record = json.loads((folder / DETECTOR).read_text())
    change(record)
    (folder / DETECTOR).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format=2), "has format 2, and this version reads format 1"),
        (lambda r: r.update(extra=1), "extra"),
        (lambda r: r["layers"][0].pop("shape"), "shape"),
        (lambda r: r["layers"][0].update(shape=[1, 2]), "shape"),
        (lambda r: r["layers"].pop(), "has 2 layers, expected 1"),
        (lambda r: r.update(roi_shape=[4, 4]), "lacks roi"),
        (lambda r: r["classes"][0]["layers"][0].update(noise_variance=-1.0), "noise_variance"),
        (lambda r: r["options"].update(fpr=3.0), "fpr=3.0"),
        (lambda r: r["options"].update(backbone="resnet50"), "does not fit resnet50"),
        (lambda r: r["classes"][0]["layers"][1].update(n_components=3), r"0\.1\.basis has shape"),
        (lambda r: r["sha256"].pop(BACKBONE), "gives no SHA-256"),
        (lambda r: r.update(precision="int3"), "precision"),
        (lambda r: r["classes"][0].update(n_folds=1), "8 scores held out of 8 samples in 1 folds"),
        (lambda r: r["classes"][0].update(n_samples=7), "n_folds is 0, or 2 to n_samples"),
        (lambda r: r["classes"][0].update(n_held_out=1), "n_held_out"),
        (lambda r: r["classes"][0].update(n_folds=0, n_held_out=9), r"0\.held_out has shape"),
    ],
)
def test_changed_records_are_refused(folder, change, words):
    edit(folder, change)
    with pytest.raises(ArtifactError, match=words):
        load_detector(folder, device="cpu")


def test_changed_files_are_refused(folder):
    good = sha256(folder / DETECTOR)
    edit(folder, lambda r: r["options"].update(fpr=0.5))
    with pytest.raises(ArtifactError, match="has SHA-256 .* expected"):
        load_detector(folder, expected_sha256=good)
    data = bytearray((folder / STATISTICS).read_bytes())
    data[-1] ^= 1
    (folder / STATISTICS).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="statistics.safetensors has SHA-256"):
        load_detector(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a["0.0.mean"].__setitem__(0, np.nan), "NaN"),
        (lambda a: a["0.1.variances"].__setitem__(0, -1), "not positive"),
        (lambda a: a.update({"0.1.leading": a["0.1.leading"][:-1]}), r"0\.1\.leading has shape"),
        (lambda a: a["0.1.usual"].__setitem__((0, 0), 0), "not positive"),
        (lambda a: a.pop("1.0.basis"), r"lacks 1\.0\.basis"),
        (lambda a: a.update({"0.held_out": a["0.held_out"][::-1].copy()}), "out of order"),
    ],
)
def test_statistics_that_make_no_sense_are_refused_even_with_a_right_hash(folder, change, words):
    arrays = load_file(folder / STATISTICS)
    change(arrays)
    save_file(arrays, folder / STATISTICS)
    edit(folder, lambda r: r["sha256"].update({STATISTICS: sha256(folder / STATISTICS)}))
    with pytest.raises(ArtifactError, match=words):
        load_detector(folder)


@pytest.mark.parametrize("name", [DETECTOR, STATISTICS, BACKBONE])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} cannot be read"):
        load_detector(folder)


def test_another_precision_than_the_calibration_s_is_refused(saved):
    with pytest.raises(ArtifactError, match="calibrated in fp32 and precision=bf16"):
        load_detector(saved, precision="bf16")
