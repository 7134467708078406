import hashlib
import json
import stat

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dfm_mlflow.artifact.save_load import DETECTOR
from dfm_mlflow.cli import cli
from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ExportError
from dfm_mlflow.export import graph as exporting
from dfm_mlflow.export.graph import OUTPUTS, export_onnx
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.mlflow_plugin.flavor import save_model
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.depths import extract_settled

from ..conftest import texture
from ..detectors import fit, pictures

pytestmark = pytest.mark.integration  # whole jobs, one after the other

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


SUM = {"fpr": "0.1", "aggregate": "sum", "normalize": "global"}


def scored(path, images):
    """Scores of pictures of any sizes, one at a time."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = [session.run(list(OUTPUTS), {"image": image[None]}) for image in images]
    return {name: np.stack([r[i][0] for r in rows]) for i, name in enumerate(OUTPUTS)}


def assert_same(path, detector, images, rtol=1e-3):
    maps = []
    expected = detector.score(images, on_image=lambda i, seen: maps.append(seen.map.numpy()))
    found = scored(path, images)
    for name in ("anomaly_score", "fre", "nll"):
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol)
    np.testing.assert_allclose(found["p_value"], expected["p_value"], rtol=rtol)
    names = [detector.class_names[i] for i in found["predicted_class"]]
    assert names == expected["predicted_class"].tolist()
    assert found["anomaly_map"].shape == np.shape(maps)
    np.testing.assert_allclose(found["anomaly_map"], maps, rtol=rtol, atol=rtol * np.max(maps))


def arrays(encoded):
    return [decode_image(p) for p in encoded]


@pytest.fixture(scope="module")
def elpv():
    """Both types of solar cells in one model, with real weights, and cells it has not seen."""
    pytest.importorskip("elpv_dataset")
    pytest.importorskip("efficientnet_lite_pytorch")
    given = {
        "category": "mono,poly",
        "backbone": "efficientnet_lite0",
        "cache": "false",
        "device": "cpu",
    }
    options = Options.parse(given).resolve()
    catalog = load_catalog("elpv", options.categories)
    extractor, weights, options = build_extractor(options)
    fitted = [i for c in options.categories for i in catalog.train if i.category == c][::20]
    extraction = extractor.extract([i.path for i in fitted])
    labels = [i.category for i in fitted]
    detector = AnomalyDetector.fit(options, extractor, extraction, labels, weights)
    return detector, arrays(i.path.read_bytes() for i in catalog.test[::90])


@pytest.mark.slow
def test_real_cells_score_as_in_the_detector(elpv, tmp_path):
    detector, cells = elpv
    sizes = [(180, 401), (700, 523), (90, 90)]
    other = [np.array(Image.fromarray(c).resize(s)) for c, s in zip(cells, sizes, strict=False)]
    result = export_onnx(detector, tmp_path / "cells.onnx")
    assert result.difference < 1e-4
    assert_same(result.path, detector, cells + other, rtol=1e-4)
    bases = sum(layer.subspace.basis.size for c in detector.classes for layer in c.layers)
    weights = sum(p.numel() for p in detector.extractor.backbone.module.parameters())
    assert result.megabytes * 1e6 < 4 * weights + 2.5 * bases  # these stay in half precision
    assert b".py" not in result.path.read_bytes()  # no stack, no path of this machine


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "keep", "aggregate": "max", "tail": "gpd", "roi": True, "pooling": "1"},
        {
            "score": "nll",
            "normalize": "none",
            "image_size": "64x80",
            "layers": "avgpool",
            "pooling": "1",
        },
    ],
    ids=["keep-roi-gpd", "nll-avgpool"],
)
def test_every_option_is_in_the_graph(options, tmp_path):
    roi = None
    if options.pop("roi", False):
        roi = np.zeros((50, 70), dtype=bool)
        roi[5:40, 10:60] = True
    classes = {"dark": pictures(24, 1, shift=-60), "light": pictures(25, 2, shift=60)}
    detector = fit(classes, roi=roi, **options)
    path = export_onnx(detector, tmp_path / "m.onnx").path
    images = arrays(pictures(4, 3, shift=-60) + pictures(4, 4, shift=60))
    images += arrays(pictures(3, 5, defect=True, shift=60))
    images += [
        np.repeat(images[0], 3, axis=1),
        np.array(Image.fromarray(images[5]).resize((50, 90))),
    ]
    assert_same(path, detector, images, rtol=1e-4)
    # several pictures of one size at once
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    together = session.run(["anomaly_score"], {"image": np.stack(images[:5])})[0]
    np.testing.assert_allclose(together, scored(path, images[:5])["anomaly_score"], rtol=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(fit(**SUM), folder)
    return folder


def test_command_writes_a_file_that_says_what_it_is(saved, tmp_path):
    path = tmp_path / "m.onnx"
    done = CliRunner().invoke(
        cli, ["export", str(saved), "--output", str(path)], catch_exceptions=False
    )
    assert f"{path} has " in done.output
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "dfm-mlflow"
    known = {p.key: p.value for p in model.metadata_props}
    digest = hashlib.sha256((saved / "dfm" / DETECTOR).read_bytes()).hexdigest()
    assert (known["dfm.detector_sha256"], known["dfm.model"]) == (digest, str(saved))
    detector = fit(**SUM)
    assert json.loads(known["dfm.classes"]) == ["stripes"]
    assert json.loads(known["dfm.thresholds"]) == pytest.approx(detector.thresholds(), rel=1e-4)
    assert (known["dfm.format"], known["dfm.fpr"]) == ("2", "0.1")
    (given,) = model.graph.input
    assert [d.dim_value or d.dim_param for d in given.type.tensor_type.shape.dim] == [
        "n",
        "height",
        "width",
        3,
    ]
    assert [o.name for o in model.graph.output] == list(OUTPUTS)
    assert stat.S_IMODE(path.stat().st_mode) & 0o444

    # p-value and threshold make the same decision
    images = arrays(pictures(10, 7) + pictures(5, 8, defect=True))
    found = scored(path, images)
    by_score = found["anomaly_score"] > json.loads(known["dfm.thresholds"])["stripes"]
    by_p = found["p_value"] <= json.loads(known["dfm.effective_fpr"])["stripes"] * (1 + 1e-6)
    np.testing.assert_array_equal(by_score, by_p)


def test_a_graph_says_what_becomes_of_wide_values(tmp_path):
    """Its input has 8 bits: values of 12 that are brought to them so score as in the detector."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path in paths:
        values = (texture(rng)[:, :, 0] / 255 * 4095).round().astype(np.uint16)
        Image.fromarray(values).save(path)
    given = {"backbone": "resnet18", "weights": "random", "layers": "layer1", "pooling": "2"}
    given |= {"category": "part", "image_size": "64", "cache": "false", "augment": "none"}
    given["precision"] = "fp32"  # on some machines auto would be bf16, which is refused
    options = Options.parse(given).resolve()
    items = [Item(path, "part", "train", "good") for path in paths]
    extractor, weights, options = build_extractor(options, items)
    known, extraction = extract_settled(extractor, paths, options.stated_bits)
    detector = AnomalyDetector.fit(options, known, extraction, ["part"] * 24, weights)
    export_onnx(detector, tmp_path / "m.onnx")
    about = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert (about["dfm.bits"], about["dfm.shift"], about["dfm.white"]) == ("12", "0", "4095")
    grey = np.asarray(Image.open(paths[0])).astype(float) * 255 / int(about["dfm.white"])
    picture = np.repeat(grey.round().astype(np.uint8)[:, :, None], 3, axis=2)
    found = scored(tmp_path / "m.onnx", [picture])["anomaly_score"]
    np.testing.assert_allclose(found, detector.score([paths[0]])["anomaly_score"], rtol=1e-3)


def test_a_graph_that_scores_otherwise_is_never_written(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(exporting, "_trace", lambda detector: onnx.ModelProto())
    monkeypatch.setattr(exporting, "_difference", lambda data, detector: 0.5)
    with pytest.raises(ExportError, match=r"scores 0.5 away from the model, and 0.001"):
        export_onnx(fit(), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    detector = fit()
    with pytest.raises(ExportError, match="does not end in .onnx"):
        export_onnx(detector, tmp_path / "m.bin")
    with pytest.raises(ExportError, match="does not exist"):
        export_onnx(detector, tmp_path / "nowhere" / "m.onnx")
    tiled = {"plate": arrays(pictures(3))}
    with pytest.raises(ExportError, match="tile=128 makes as many passes"):
        export_onnx(fit(tiled, tile="128", image_size="256"), path)
    monkeypatch.setattr(detector.extractor, "precision", "bf16")
    with pytest.raises(ExportError, match="calibrated in bf16"):
        export_onnx(detector, path)
    monkeypatch.setattr(detector.extractor, "precision", "fp32")
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: 1 / 0)
    with pytest.raises(ExportError, match="resnet18 cannot be written as ONNX .*division"):
        export_onnx(detector, path)
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime: .*\[onnx\]"):
        export_onnx(detector, path)
    assert list(tmp_path.iterdir()) == []
