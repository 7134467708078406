"""Subspaces over the cells of tokens, from pictures to the stored model and ONNX."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dfm_mlflow.artifact.save_load import load_detector, save_detector
from dfm_mlflow.config import Options
from dfm_mlflow.detector.class_model import ratio_of, raw_scores, score_maps
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.layer_fit import Deal, cell_blocks, check_single, fit_layers
from dfm_mlflow.detector.maps import blurred
from dfm_mlflow.errors import FitError
from dfm_mlflow.export.graph import export_onnx
from dfm_mlflow.images.decode import decode_image

from ..detectors import deal, fit, pictures
from ..export.test_graph import assert_same

pytest.importorskip("timm")
TINY = {"backbone": "timm:test_vit", "layers": "depth:0.3-0.7", "image_size": "80"}
SHAPE = (6, 5, 4)


def options(**given):
    return Options.parse({"layers": "a", "pooling": "1", "subspace": "cell", **given}).resolve()


def tokens(n, seed=0):
    mixed = np.random.default_rng(seed).normal(size=(n, 5, 4, 6)) * np.geomspace(3, 0.2, 6) + 2
    return torch.from_numpy(mixed.transpose(0, 3, 1, 2).copy()).float()


def test_subspace_is_scikit_learn_s_of_all_cells_and_maps_are_its_residuals():
    x, grid = tokens(20), Grid(SHAPE, np.ones(SHAPE[1:], bool), rows_are="cell")
    fitted = fit_layers([x], deal(20), [grid], options(pca_level="0.9"))
    cells = x.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    pca = PCA(0.9, svd_solver="full").fit(cells)
    subspace = fitted.layers[0].subspace
    assert subspace.basis.dtype == np.float32
    assert (subspace.n_components, subspace.n_samples) == (pca.n_components_, 20)
    np.testing.assert_allclose(
        subspace.basis @ subspace.basis.T, pca.components_.T @ pca.components_, atol=1e-5
    )
    new = tokens(3, seed=1)
    raw = raw_scores([fitted.layers[0].on(torch.device("cpu"))], [new], [grid])
    rows = new.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    expected = ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).sum(1).reshape(3, 5, 4)
    np.testing.assert_allclose(raw.maps[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw.fre, expected.sum((1, 2)), rtol=1e-4)


def test_cells_outside_a_region_are_neither_fitted_nor_scored():
    inside = np.ones(SHAPE[1:], bool)
    inside[0] = False
    x, other = tokens(20), tokens(20)
    other[:, :, 0] = 1e6
    grid = Grid(SHAPE, inside, rows_are="cell")
    a, b = (fit_layers([f], deal(20), [grid], options()) for f in (x, other))
    assert torch.equal(a.maps[0], b.maps[0])
    assert not a.maps[0][:, 0].any()
    assert next(iter(cell_blocks(x, grid))).shape == (20, 16, 6)
    assert a.nll.numpy() == pytest.approx(b.nll.numpy())


def test_blur_averages_what_counts():
    maps = torch.rand(2, 5, 4)
    inside = np.ones((5, 4), np.float32)
    torch.testing.assert_close(blurred(maps, 3, inside)[:, 2, 2], maps[:, 1:4, 1:4].mean((1, 2)))
    torch.testing.assert_close(blurred(maps, 3, inside)[:, 0, 0], maps[:, :2, :2].mean((1, 2)))
    inside[0] = 0
    kept = blurred(maps, 3, inside)
    assert not kept[:, 0].any()
    torch.testing.assert_close(kept[:, 1, 0], maps[:, 1:3, :2].mean((1, 2)))
    torch.testing.assert_close(blurred(torch.ones(1, 5, 4), 3, inside)[0, 1:], torch.ones(4, 4))


def test_held_out_scores_are_those_of_new_pictures(tmp_path):
    """Exchangeable pictures: ranks of new ones among the held-out ones are uniform."""
    detector = fit({"stripes": pictures(40)}, **TINY)
    assert detector.options.rows_are == ("cell",)
    new = detector.score(pictures(60, seed=5))
    assert 0.25 < new["p_value"].mean() < 0.75
    bad = detector.score(pictures(20, seed=6, defect=True))
    assert bad["anomaly_score"].median() > new["anomaly_score"].quantile(0.9)


@pytest.mark.parametrize(
    "given",
    [{}, {"subspace": "cell+picture", "pooling": "1+2", "normalize": "blend"}, {"score": "nll"}],
    ids=["cell", "both", "nll"],
)
def test_models_are_stored_and_exported(given, tmp_path):
    roi = np.ones((40, 40), bool)
    roi[:10] = False
    detector = fit({"stripes": pictures(12)}, roi=roi, **TINY, **given)
    new = pictures(3, seed=3) + pictures(2, seed=4, defect=True)
    before = detector.score(new)
    digest = save_detector(detector, tmp_path / "dfm")
    loaded = load_detector(tmp_path / "dfm", expected_sha256=digest, device="cpu")
    after = loaded.score(new)
    assert (after["anomaly_score"] == before["anomaly_score"]).all()
    assert (after["nll"] == before["nll"]).all()
    assert loaded.grids[0].rows_are == "cell"
    if "subspace" not in given:  # one export is enough: the other is that of a fused model
        return
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(loaded, tmp_path / "m.onnx")
    assert_same(tmp_path / "m.onnx", loaded, [decode_image(p) for p in new])


def test_a_copy_of_a_picture_is_in_its_fold_and_its_group():
    """In another fold it would be scored by a model that knows it."""
    keys = [f"{i % 30}" for i in range(50)]  # 20 of 30 pictures twice
    for seed in range(5):
        for groups in (None, [f"g{i}" for i in range(50)], [f"g{i % 7}" for i in range(50)]):
            dealt = Deal.of(keys, groups, seed)
            np.testing.assert_array_equal(dealt.folds[30:], dealt.folds[:20])
            np.testing.assert_array_equal(dealt.groups[30:], dealt.groups[:20])
            assert len(np.unique(dealt.folds)) > 1 or groups is not None


def test_the_order_of_pictures_does_not_matter():
    images = pictures(12)
    a, b = (fit({"stripes": images[::step]}, **TINY) for step in (1, -1))
    new = pictures(3, seed=3)
    np.testing.assert_allclose(
        a.score(new)["anomaly_score"], b.score(new)["anomaly_score"], rtol=1e-5
    )


FUSED = {
    "backbone": "timm:test_vit+resnet18",
    "layers": "blocks.2,2:stride:8",
    "pooling": "1,1+2",
    "image_size": "80",
    "subspace": "cell,picture",
    "pca_level": "0.99,0.9",
    "aggregate": "top:0.05,top:0.1",
    "normalize": "global,blend",
}


def fused_options(**given):
    given = {
        "backbone": "vit_b_16+resnet18",
        "layers": "a,2:b",
        "pooling": "1,1",
        "subspace": "cell,picture",
        "pca_level": "0.9,0.9",
        "aggregate": "top:0.1,max",
        "normalize": "global,blend",
        **given,
    }
    return Options.parse(given).resolve()


def test_groups_of_maps_count_by_what_they_explain():
    grids = [Grid(SHAPE, np.ones(SHAPE[1:], bool), rows_are=k) for k in ("cell", "picture")]
    maps = [torch.rand(3, 5, 4) + 1, torch.rand(3, 5, 4) + 1]
    normalisers = [torch.full((5, 4), 2.0), torch.ones(5, 4)]
    nll = torch.zeros(3)
    of_cells = (maps[0] / 2).flatten(1).sort(1, descending=True).values[:, :2].mean(1)
    of_pictures = maps[1].flatten(1).max(1).values
    options = fused_options()
    score, combined = score_maps(maps, normalisers, nll, grids, options, [0.9, 0.3])
    torch.testing.assert_close(score, of_cells**0.75 * of_pictures**0.25)
    torch.testing.assert_close(combined, 0.75 * maps[0] / 2 + 0.25 * maps[1])
    few, _ = score_maps(maps, normalisers, nll, grids, options, [0.9, 0.0])
    torch.testing.assert_close(few, of_cells)
    ratio = ratio_of([np.ones(3), np.full(3, 0.5)], grids, options, [0.9, 0.3])
    np.testing.assert_allclose(ratio, 0.5**0.25)
    alike = fused_options(subspace="picture", aggregate="max")
    same = [replace(g, rows_are="picture") for g in grids]
    one, mean = score_maps(maps, normalisers, nll, same, alike, [0.9, 0.3])
    torch.testing.assert_close(mean, (maps[0] / 2 + maps[1]) / 2)
    torch.testing.assert_close(one, mean.flatten(1).max(1).values)


def test_few_pictures_explain_nothing_of_others_and_many_do():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 120))

    def explained_share(n):
        rows = rng.normal(size=(n, 4)) @ mixing + 0.3 * rng.normal(size=(n, 120))
        x = torch.from_numpy(rows.reshape(n, *SHAPE)).float()
        grids = [Grid(SHAPE, np.ones(SHAPE[1:], bool))]
        chosen = Options.parse({"layers": "a", "pooling": "1"}).resolve()
        return fit_layers([x], deal(n), grids, chosen).layers[0].explained_share

    assert explained_share(3) < 0.5 < 0.9 < explained_share(100)


@pytest.mark.slow
def test_a_fused_model_is_fitted_stored_and_exported(tmp_path):
    detector = fit({"stripes": pictures(16)}, **FUSED)
    assert detector.options.rows_are == ("cell", "picture", "picture")
    assert detector.options.backbone == "timm:test_vit+resnet18"
    new = pictures(3, seed=3) + pictures(2, seed=4, defect=True)
    before = detector.score(new)
    save_detector(detector, tmp_path / "dfm")
    loaded = load_detector(tmp_path / "dfm", device="cpu")
    assert (loaded.score(new)["anomaly_score"] == before["anomaly_score"]).all()
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(loaded, tmp_path / "m.onnx")
    assert_same(tmp_path / "m.onnx", loaded, [decode_image(p) for p in new])


@pytest.mark.parametrize("given", [TINY, FUSED], ids=["tokens", "fused"])
def test_one_picture_is_enough_for_cells_and_promises_a_half(given, tmp_path, caplog):
    detector = fit({"stripes": pictures(1)}, **given)
    assert "its parts are held out in turn" in caplog.text
    calibration = detector.classes[0].calibration
    assert (calibration.n_groups, calibration.smallest_p_value) == (1, 0.5)
    assert "at most 0.5" in detector.calibration_sentence()
    new = detector.score(pictures(20, seed=5))
    assert set(new["p_value"]) <= {0.5, 1.0}
    assert new["is_anomaly"].mean() < 0.9
    assert detector.score(pictures(10, seed=6, defect=True))["is_anomaly"].mean() > 0.8
    save_detector(detector, tmp_path / "dfm")
    loaded = load_detector(tmp_path / "dfm", device="cpu")
    again = loaded.score(pictures(20, seed=5))
    assert (again["anomaly_score"] == new["anomaly_score"]).all()


def test_one_picture_is_refused_where_rows_are_pictures():
    with pytest.raises(FitError, match=r"could be read; 2 are needed"):
        fit({"stripes": pictures(1)})
    with pytest.raises(FitError, match="subspaces over pictures need 2"):
        check_single([Grid(SHAPE, np.ones(SHAPE[1:], bool))])
