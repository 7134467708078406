"""Export by the record alone, and for fp32 from new good pictures."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dfm_mlflow.config import ExportOptions
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DataError, ExportError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.jobs.export import export
from dfm_mlflow.mlflow_plugin.flavor import save_model
from dfm_mlflow.network.extractor import Extractor

from ..detectors import fit, pictures

pytestmark = pytest.mark.integration  # whole jobs, one after the other

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def half():
    """A detector that was fitted and calibrated in bf16, as torch emulates it anywhere."""
    plain = fit(precision="bf16", aggregate="sum", normalize="none")
    known = plain.extractor
    extractor = Extractor.of(known.backbone, plain.options, torch.device("cpu"), "bf16")
    extraction = extractor.extract(pictures(30))
    labels = ["stripes"] * 30
    return AnomalyDetector.fit(plain.options, extractor, extraction, labels, plain.weights)


@pytest.fixture(scope="module")
def saved(half, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "model"
    save_model(half, folder)
    return folder


def options(saved, output, **more):
    return ExportOptions.parse({"model": str(saved), "output": str(output), **more})


def folder_of(tmp_path, images):
    folder = tmp_path / "good"
    folder.mkdir()
    for i, data in enumerate(images):
        (folder / f"{i:02d}.png").write_bytes(data)
    return folder


def test_half_precision_is_refused_before_torch_is_loaded(saved, tmp_path):
    words = [str(saved), "--output", str(tmp_path / "m.onnx")]
    code = (
        "import sys; from dfm_mlflow.cli import cli\n"
        f"try: cli(['export', *{words!r}], standalone_mode=False)\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ExportError False ")
    assert "calibrated in bf16" in done.stdout
    assert "give --images" in done.stdout


def test_new_good_pictures_calibrate_it_for_fp32(half, saved, tmp_path):
    good = folder_of(tmp_path, pictures(25, seed=5))
    result = export(options(saved, tmp_path / "m.onnx", images=str(good)))
    assert "The threshold of stripes was" in result.summary()
    known = {p.key: p.value for p in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert known["dfm.recalibrated_on"] == str(good)
    threshold = json.loads(known["dfm.thresholds"])["stripes"]
    assert threshold != half.thresholds()["stripes"]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    image = decode_image(pictures(1, seed=5)[0])  # the first of the calibration
    score, p_value = session.run(["anomaly_score", "p_value"], {"image": image[None]})
    assert np.isfinite(score).all()
    assert 1 / 26 <= p_value[0] <= 1


def test_pictures_that_it_was_fitted_to_are_refused(saved, tmp_path):
    good = folder_of(tmp_path, pictures(30))
    with pytest.raises(DataError, match=r"fitted to 30 of 30 pictures|score as low as pictures"):
        export(options(saved, tmp_path / "m.onnx", images=str(good)))


def test_tiles_are_refused_with_the_reason(tmp_path):
    tiled = tmp_path / "tiled"
    save_model(fit({"plate": pictures(3)}, tile="128", image_size="256"), tiled)
    with pytest.raises(ExportError, match="tile=128 makes as many passes"):
        export(options(tiled, tmp_path / "m.onnx", images=str(tmp_path)))
