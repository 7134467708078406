"""The round trip, and what `artifact_record` and `artifact_statistics` refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from dfm_mlflow.artifact.record import DETECTOR
from dfm_mlflow.artifact.save_load import BACKBONE, STATISTICS, load_detector, save_detector, sha256
from dfm_mlflow.errors import ArtifactError

from ..detectors import fit, pictures


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
    assert "from 5 new good pictures of the smallest category;" in loaded.calibration_sentence()


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
        (lambda r: r.update(format=3), "has format 3, and this version reads formats 1 and 2"),
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
        (lambda r: r["classes"][0].update(n_samples=7), "n_folds is 0, or 2 and more"),
        (lambda r: r["classes"][0].update(n_held_out=1), "1 scores held out of 8 samples"),
        (lambda r: r["classes"][0].update(n_folds=0, n_held_out=9), r"0\.held_out has shape"),
        (lambda r: r.update(options={}), "the option backbone is auto"),
        (lambda r: r["options"].update(pooling="auto"), "the option pooling is auto"),
        (lambda r: r["options"].update(image_size="99"), "the backbone gives .* with these"),
        (lambda r: r["options"].update(pooling="999"), "the backbone gives .* with these options"),
        (lambda r: r["layers"][0].update(shape=[1, 2**20, 2**20]), r"\(1, 1048576, 1048576\)"),
        (lambda r: r["classes"][1].update(name="dark"), "a name appears twice"),
        (lambda r: r["classes"][0]["layers"][0].update(noise_variance=1e-300), "noise_variance"),
        (lambda r: r["classes"][0]["layers"][0].update(noise_variance=1e300), "noise_variance"),
        (lambda r: r["classes"][0]["layers"][0].update(noise_variance=float("nan")), "noise_var"),
        (lambda r: r.update({"x" * 10**5: "y" * 10**5}), "Extra inputs"),
        (lambda r: r["layers"][0].update(name="stride:8"), "String should match pattern"),
        (lambda r: r.update(roi_shape=[10**4, 10**4]), "more than 50000000 pixels"),
        (lambda r: r["classes"][0].update(n_held_out=2**40), "n_held_out"),
    ],
)
def test_changed_records_are_refused(folder, change, words):
    edit(folder, change)
    with pytest.raises(ArtifactError, match=words):
        load_detector(folder, device="cpu")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"format": 1, "a":' * 10**5, "\xff{", "", "[]", "7"]
)
def test_what_is_no_record_is_refused(folder, text):
    (folder / DETECTOR).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"is not JSON|has format None") as caught:
        load_detector(folder)
    assert len(str(caught.value)) < 400


def test_a_record_beyond_any_size_is_not_read(folder):
    with open(folder / DETECTOR, "wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ArtifactError, match="more than the limit of 16777216"):
        load_detector(folder)


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
        (lambda a: a.update({"0.0.leading": a["0.0.leading"][::-1].copy()}), "out of order"),
        (lambda a: a["0.correlation"].__setitem__((0, 1), 0.9), "holds no correlations in 0"),
        (lambda a: a.pop("1.correlation"), r"lacks 1\.correlation"),
        (lambda a: a.update({"0.0.basis": a["0.0.basis"] * 100}), "not unit vectors"),
        (lambda a: a.update({"0.0.basis": a["0.0.basis"] * 0}), "not unit vectors"),
        (lambda a: a.update({"0.0.mean": a["0.0.mean"] * 0 + 3e38}), "too large"),
        (lambda a: a.update({"0.0.mean": a["0.0.mean"].astype(bool)}), "bool, expected float32"),
        (lambda a: a.update({"0.0.basis": a["0.0.basis"].astype(float)}), "expected float16"),
        (lambda a: a.update({"payload": a["0.held_out"]}), "payload, which belongs to nothing"),
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


def with_header(header, rest=b"\0" * 4):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def of(kind, shape, end=4):
    return with_header({"x": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}})


@pytest.mark.parametrize("name", [STATISTICS, BACKBONE])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        of("F4", [8]),
        of("F8_E4M3", [4]),
        of("Q9", [4]),
        of("F32", [2**40], 2**42),
        of("F32", [2**62, 0], 0),
        of("F32", [2**40]),
        (2**63).to_bytes(8, "little") + b"{}",
        with_header([1]),
        with_header({"x" * 10**5: 1}),
    ],
)
def test_headers_that_lie_are_refused_with_a_short_sentence(folder, name, data):
    (folder / name).write_bytes(data)
    edit(folder, lambda r: r["sha256"].update({name: sha256(folder / name)}))
    with pytest.raises(ArtifactError) as caught:
        load_detector(folder, device="cpu")
    assert name in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.fill_(float("nan")), "NaN"),
        (lambda t: t[:1].clone(), "has shape"),
        (lambda t: t.to(torch.int8), "dtype torch.int8, expected float32"),
        (lambda t: t.to(torch.float64), "expected float32"),
    ],
)
def test_weights_that_make_no_sense_are_refused_even_with_a_right_hash(folder, change, words):
    state = load_torch(folder / BACKBONE)
    first = sorted(state)[0]
    save_torch(state | {first: change(state[first])}, folder / BACKBONE)
    edit(folder, lambda r: r["sha256"].update({BACKBONE: sha256(folder / BACKBONE)}))
    with pytest.raises(ArtifactError, match=words):
        load_detector(folder, device="cpu")
