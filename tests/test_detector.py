import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.detector import COLUMNS
from dfm_mlflow.errors import ConfigError, FitError, ImageError

from .detectors import fit, pictures


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
    scores = fit(**options).score(GOOD[:3] + BAD[:3])
    if "score" in options:
        np.testing.assert_array_equal(scores["anomaly_score"], scores["nll"])
    elif options["aggregate"] == "sum":
        np.testing.assert_allclose(scores["anomaly_score"], scores["fre"], rtol=1e-6)
    else:
        assert (scores["anomaly_score"] < scores["fre"]).all()


def test_scores_follow_their_definition(detector):
    features = detector.extractor.extract(BAD[:4]).features[0].reshape(4, -1).double().numpy()
    subspace = detector.classes[0].subspace
    scores = detector.score(BAD[:4])
    np.testing.assert_allclose(scores["fre"], subspace.fre(features), rtol=1e-5)
    np.testing.assert_allclose(scores["nll"], subspace.nll(features), rtol=1e-4)
    calibration = detector.classes[0].calibration
    np.testing.assert_array_equal(scores["p_value"], calibration.p_value(scores["anomaly_score"]))


def test_decision_follows_fpr_and_its_floor(detector):
    scores = detector.score(GOOD + BAD, fpr=0.3)
    np.testing.assert_array_equal(scores["is_anomaly"], scores["p_value"] <= 0.3)
    assert detector.effective_fpr(0.001) == 1 / 31
    assert "999 would do for the 0.001" in detector.calibration_sentence(0.001)
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


def test_unfit_classes_are_named():
    with pytest.raises(FitError, match="class flat cannot be fitted. All rows"):
        fit({"stripes": pictures(3), "flat": [GOOD[0]] * 5})
    with pytest.raises(FitError, match="one group"):
        fit({"stripes": pictures(3)}, groups=["a", "a", "a"])
    assert fit({"two": pictures(2)}).n_components == 1


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
