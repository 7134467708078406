import base64
import io
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dfm_mlflow.columns import COLUMNS
from dfm_mlflow.core.drift import measure_drift
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError, FitError, ImageError
from dfm_mlflow.network.extractor import Extraction

from ..conftest import texture
from ..detectors import fit, pictures, png


@pytest.fixture(scope="module")
def detector():
    return fit()


GOOD, BAD = pictures(20, seed=5), pictures(20, seed=6, defect=True)


def test_defects_score_higher(detector):
    scores = detector.score(GOOD + BAD)
    assert scores.dtypes.astype(str).to_dict() == COLUMNS
    assert scores["anomaly_score"][20:].min() > scores["anomaly_score"][:20].max()
    assert scores["p_value"][20:].max() == 1 / 31
    assert scores["is_anomaly"][20:].all()


@pytest.mark.parametrize("options", [{"aggregate": "sum"}, {"aggregate": "max"}, {"score": "nll"}])
def test_the_score_is_what_was_asked_for(options):
    scores = fit(**options, normalize="none").score(GOOD[:3] + BAD[:3])
    if "score" in options:
        np.testing.assert_array_equal(scores["anomaly_score"], scores["nll"])
    elif options["aggregate"] == "sum":
        np.testing.assert_allclose(scores["anomaly_score"], scores["fre"], rtol=1e-5)
    else:
        assert (scores["anomaly_score"] < scores["fre"]).all()


def test_scores_follow_their_definition(detector):
    features = detector.extractor.extract(BAD[:4]).features
    scores = detector.score(BAD[:4])
    fre, nll, maps = 0, 0, []
    for feature, layer in zip(features, detector.classes[0].layers, strict=True):
        x = feature.reshape(4, -1).double().numpy()
        fre = fre + layer.subspace.fre(x)
        nll = nll + layer.subspace.nll(x)
        raw = (layer.subspace.residual(x).reshape(feature.shape) ** 2).sum(1)
        divided = torch.from_numpy(raw / layer.normaliser)[:, None]
        maps.append(F.interpolate(divided, (8, 8), mode="bilinear")[:, 0].numpy())
    np.testing.assert_allclose(scores["fre"], fre, rtol=1e-5)
    np.testing.assert_allclose(scores["nll"], nll, rtol=1e-4)
    top = np.sort(np.mean(maps, axis=0).reshape(4, -1))[:, -3:].mean(1)  # 5 % of 64
    np.testing.assert_allclose(scores["anomaly_score"], top, rtol=1e-4)
    calibration = detector.classes[0].calibration
    np.testing.assert_array_equal(scores["p_value"], calibration.p_value(scores["anomaly_score"]))


@pytest.mark.parametrize("how", ["none", "global", "position"])
def test_a_layer_s_map_is_divided_by_what_held_out_pictures_show(how):
    layer = fit(normalize=how).classes[0].layers[0]
    extraction = fit().extractor.extract(pictures(30)).features[0]
    if how == "none":
        assert (layer.normaliser == 1).all()
    elif how == "global":
        assert np.ptp(layer.normaliser) == 0
        # held-out residuals exceed those of the pictures that were fitted
        raw = layer.subspace.residual(extraction.reshape(30, -1).numpy())
        assert layer.normaliser[0, 0] > (raw**2).sum(1).mean() / 64
    else:
        assert layer.normaliser.std() > 0
        assert layer.normaliser.min() >= 0.29 * layer.normaliser.mean()


def test_copies_teach_and_are_not_calibrated_on():
    plain, turned = fit(augment="none"), fit(augment="rotations")
    assert (plain.options.augment, turned.options.augment) == ("none", "rotations")
    assert len(turned.classes[0].calibration.scores) == 30
    for layer in turned.classes[0].layers:
        assert layer.subspace.n_samples == len(layer.leading_coordinates) == 30
    assert turned.n_components != plain.n_components
    # a picture that lies otherwise is less unusual to the model that saw such copies
    images = [png(np.rot90(texture(np.random.default_rng(50 + i)))) for i in range(6)]
    p = [d.score(images)["p_value"].mean() for d in (plain, turned)]
    assert p[1] > p[0]


def test_each_scale_of_a_layer_is_a_map_of_its_own():
    detector = fit(layers="layer1,layer2", pooling="2+8,4")
    shapes = [g.shape for g in detector.grids]
    assert shapes == [(64, 8, 8), (64, 2, 2), (128, 2, 2)]
    fine, coarse, _ = detector.extractor.extract(pictures(2)).features
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 4), coarse)
    scores = detector.score([*pictures(4, seed=1), *pictures(4, seed=2, defect=True)])
    assert scores["anomaly_score"][4:].min() > scores["anomaly_score"][:4].max()


def test_scores_of_a_layer_do_not_depend_on_its_scale(detector):
    """Division by what good pictures show makes layers of any scale weigh alike."""
    names = detector.extractor.backbone.layers
    extraction = detector.extractor.extract(pictures(30))
    scaled = Extraction(
        [extraction.features[0] * 100, extraction.features[1]],
        extraction.kept,
        {},
        extraction.sizes,
        {i: str(i) for i in range(30)},
    )
    extraction = replace(extraction, digests=scaled.digests)  # so that folds are the same
    fitted = [
        AnomalyDetector.fit(detector.options, detector.extractor, e, ["stripes"] * 30, {})
        for e in (extraction, scaled)
    ]
    assert len(names) == 2
    ours, theirs = (d.classes[0].calibration.scores for d in fitted)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_the_fit_is_a_function_of_the_set(detector):
    """Neither names nor order of the pictures change a threshold or a score."""
    extraction = detector.extractor.extract(pictures(30))
    order = np.random.default_rng(0).permutation(30)
    turned = replace(extraction, features=[f[torch.from_numpy(order)] for f in extraction.features])
    ours, theirs = (
        AnomalyDetector.fit(detector.options, detector.extractor, e, ["stripes"] * 30, {})
        for e in (extraction, turned)
    )
    assert ours.thresholds() == theirs.thresholds()
    for a, b in zip(ours.classes[0].layers, theirs.classes[0].layers, strict=True):
        np.testing.assert_array_equal(a.subspace.basis, b.subspace.basis)
    pd.testing.assert_frame_equal(ours.score(GOOD + BAD), theirs.score(GOOD + BAD))


def test_copies_of_a_picture_count_once(detector):
    """With each picture five times the promise is that of the pictures, and p-values hold."""
    drawn = pictures(30)
    five = fit({"stripes": [p for p in drawn for _ in range(5)]})
    calibration = five.classes[0].calibration
    assert calibration.n_groups == 30
    assert len(calibration.scores) == 150
    assert five.effective_fpr(0.01) == 1 / 31
    assert "from 150 good pictures in 30 groups" in five.calibration_sentence()
    # every copy was held out with the others, so its score is that of a new picture
    new = five.score(pictures(200, seed=77))
    assert new["is_anomaly"].mean() <= 0.12


def test_a_named_category_is_not_guessed(detector):
    two = fit({"stripes": pictures(30), "dark": pictures(30, seed=5)})
    rows = two.score(GOOD[:3], category="dark")
    assert (rows["predicted_class"] == "dark").all()
    with pytest.raises(ConfigError, match="has no such category: it has stripes, dark"):
        two.score(GOOD[:1], category="bright")


def test_decision_follows_fpr_and_its_floor(detector):
    scores = detector.score(GOOD + BAD, fpr=0.3)
    np.testing.assert_array_equal(scores["is_anomaly"], scores["p_value"] <= 0.3)
    assert detector.effective_fpr(0.001) == 1 / 31
    assert "rate 0.001 needs 999 good pictures" in detector.calibration_sentence(0.001)
    assert detector.thresholds(0.3)["stripes"] < detector.thresholds(0.1)["stripes"]
    for fpr in (0, 1, -0.5):
        with pytest.raises(ConfigError, match="outside"):
            detector.score(GOOD[:1], fpr=fpr)


def test_errors_are_raised_by_row_or_reported(detector):
    mixed = [GOOD[0], b"noise", BAD[0]]
    with pytest.raises(ImageError, match="Row 1: "):
        detector.score(mixed)
    scores = detector.score(mixed, on_error="report")
    assert scores["error"].notna().tolist() == [False, True, False]
    assert np.isnan(scores["anomaly_score"][1])
    alone = detector.score([GOOD[0], BAD[0]])
    np.testing.assert_allclose(scores["anomaly_score"][[0, 2]], alone["anomaly_score"], rtol=1e-5)
    assert len(detector.score([b"x", b""], on_error="report")) == 2
    assert len(detector.score([])) == 0


def test_maps_are_at_input_size_and_show_the_defect(detector):
    image = np.full((96, 160, 3), 128, np.uint8)
    image[:] = np.array(Image.open(io.BytesIO(GOOD[0])).resize((160, 96)))
    image[60:80, 110:140] += 25
    coded = detector.score([image], anomaly_map=True)["anomaly_map"][0]
    level = np.array(Image.open(io.BytesIO(base64.b64decode(coded))))
    assert level.shape == (96, 160)
    assert level[56:84, 104:146].mean() > 1.5 * level[:48, :80].mean()
    calm = detector.score(GOOD, anomaly_map=True)["anomaly_map"]
    levels = [np.array(Image.open(io.BytesIO(base64.b64decode(c)))) for c in calm]
    assert np.mean([(v > 150).mean() for v in levels]) < 0.05


def test_padding_is_cut_off_a_map():
    """With resize=keep the map of a wide picture is that of its strip of the input."""
    wide = [png(np.repeat(texture(np.random.default_rng(i)), 3, axis=1)) for i in range(20)]
    detector = fit({"wide": wide}, resize="keep", aggregate="max")
    image = np.array(Image.open(io.BytesIO(wide[0])))
    image[:20, 150:180] = 0
    seen = []
    detector.score([image], on_image=lambda i, observation: seen.append(observation))
    full = detector.full_map(seen[0].map, seen[0].size)
    assert full.shape == (64, 192)
    top, left = np.unravel_index(int(full.argmax()), full.shape)
    assert top < 32
    assert 130 < left < 192


def test_a_defect_outside_the_region_of_interest_changes_nothing():
    roi = np.zeros((64, 64), dtype=bool)
    roi[:, :32] = True
    detector = fit(roi=roi, pooling="1")
    assert detector.grids[1].cells.sum() == 32
    image = np.array(Image.open(io.BytesIO(GOOD[0])))
    outside, inside = image.copy(), image.copy()
    outside[20:40, 32:60] = 0
    inside[20:40, 4:28] = 0
    # each in a pass of its own: the place in a batch may change the last bit of a sum
    plain, beside, hit = (
        detector.score([picture], anomaly_map=True).iloc[0] for picture in (image, outside, inside)
    )
    assert plain["anomaly_score"] == beside["anomaly_score"]
    assert plain["anomaly_map"] == beside["anomaly_map"]
    assert hit["p_value"] == 1 / 31 < plain["p_value"]
    # fitting saw nothing of it either
    spoilt = [np.array(Image.open(io.BytesIO(p))) for p in pictures(30)]
    for i, picture in enumerate(spoilt):
        picture[:, 32:] = i * 8
    again = fit({"stripes": [png(p) for p in spoilt]}, roi=roi, pooling="1")
    assert again.thresholds() == detector.thresholds()
    # a picture of another size: the mask is scaled to it
    large = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    marked = large.copy()
    marked[:, 64:] = 0
    pair = [detector.score([picture])["anomaly_score"][0] for picture in (large, marked)]
    assert pair[0] == pair[1]


@pytest.mark.slow
def test_tiles_find_what_a_small_view_loses():
    """A fine roughness of 16x16 pixels on a 1200x800 picture, which averages away at 256x256."""
    rng = np.random.default_rng(0)
    x = np.arange(1200)[None, :].repeat(800, axis=0)

    def plate(rough=False):
        base = 128 + 40 * np.sin(x / 9 + rng.uniform(0, 6)) + rng.normal(0, 6, x.shape)
        if rough:
            base[400:416, 600:616] += 60 * (-1.0) ** x[400:416, 600:616]
        return np.repeat(base.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)

    train, good, bad = ([plate(r) for _ in range(n)] for n, r in ((5, 0), (2, 0), (2, 1)))
    gap = {}
    for size, tile in (("256", "none"), ("800x1216", "256")):
        extractor = fit(
            image_size=size,
            tile=tile,
            pooling="4",
            layers="layer1",
            classes={"plate": train},
            aggregate="max",
        )
        scores = extractor.score(good + bad)["anomaly_score"].to_numpy()
        gap[tile] = scores[2:].min() / scores[:2].max()
    assert gap["256"] > 1.5
    assert gap["none"] < 1.2


def test_three_answers():
    plain = fit()
    assert "decision" not in plain.score(GOOD[:1])
    detector = fit(fpr="0.05", retest="0.5")
    scores = detector.score([*GOOD, *BAD, b"noise"], on_error="report")
    assert list(scores.columns) == [*COLUMNS, "decision"]
    p = scores["p_value"][:-1]
    expected = np.where(p <= 0.05, "reject", np.where(p <= 0.5, "retest", "pass"))
    assert scores["decision"][:-1].tolist() == expected.tolist()
    assert set(expected) == {"reject", "retest", "pass"}
    assert scores["decision"].iloc[-1] is None
    assert "up to 0.5 are to be looked at again" in detector.calibration_sentence()


def test_a_tail_promises_less_than_one_in_n():
    assert fit().effective_fpr(0.01) == 1 / 31
    detector = fit(tail="gpd")
    assert detector.effective_fpr(0.01) == 0.01
    assert "generalised Pareto tail" in detector.calibration_sentence()
    scores = detector.score(GOOD + BAD, fpr=0.01)
    flagged = scores["anomaly_score"] >= detector.thresholds(0.01)["stripes"]
    np.testing.assert_array_equal(scores["is_anomaly"], flagged)


def test_each_class_knows_its_own():
    dark, light = pictures(24, 1, shift=-60), pictures(24, 2, shift=60)
    detector = fit({"dark": dark, "light": light})
    new = pictures(6, 3, shift=-60) + pictures(6, 4, shift=60)
    scores = detector.score(new)
    assert scores["predicted_class"].tolist() == ["dark"] * 6 + ["light"] * 6
    assert (scores["p_value"] > 0.04).mean() > 0.7
    assert set(detector.thresholds()) == {"dark", "light"}
    single = fit({"dark": dark}).score(new[:6])
    np.testing.assert_allclose(scores["fre"][:6], single["fre"], rtol=1e-4)


def test_calibration_ranks_of_classes_of_unequal_size_have_one_length():
    detector = fit({"dark": pictures(60, 1, shift=-60), "light": pictures(12, 2, shift=60)})
    assert [c.layers[0].leading_coordinates.shape[1] for c in detector.classes] == [3, 1]
    seen = []
    detector.score(
        pictures(2, 3, shift=-60) + pictures(2, 4, shift=60),
        on_image=lambda i, o: seen.append(o.calibration_ranks),
    )
    drift = measure_drift(np.array([0.5] * 4), np.zeros(4, bool), np.stack(seen), 12)
    assert 0 <= drift.appearance <= 1


def test_unfit_classes_are_named():
    with pytest.raises(
        FitError, match="category flat cannot be fitted. All 5 pictures are copies of one"
    ):
        fit({"stripes": pictures(3), "flat": [GOOD[0]] * 5})
    with pytest.raises(FitError, match="one group"):
        fit({"stripes": pictures(3)}, groups=["a", "a", "a"])
    assert fit({"two": pictures(2)}).n_components == 2  # one in each layer


def test_threads_do_not_mix_answers(detector):
    expected = detector.score(GOOD + BAD)["anomaly_score"].to_numpy()
    answers = {}

    def work(i):
        answers[i] = detector.score([(GOOD + BAD)[i]])["anomaly_score"][0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(40)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    np.testing.assert_allclose([answers[i] for i in range(40)], expected, rtol=1e-5)
