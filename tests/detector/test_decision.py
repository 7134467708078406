import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfm_mlflow.columns import COLUMNS, DECISION
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.leading_coordinates import MOST_LEADING
from dfm_mlflow.detector.decision import calibration_ranks_of, calibration_sentence, decide

RNG = np.random.default_rng(0)


def one_class(name, n=39, scale=1.0, n_folds=20):
    known = np.sort(RNG.normal(size=(n, 3)), axis=0).astype(np.float32)
    calibration = Calibration.of(scale * RNG.normal(size=n), n_folds)
    return SimpleNamespace(
        name=name, calibration=calibration, layers=[SimpleNamespace(leading_coordinates=known)]
    )


def grouped(name):
    made = one_class(name)
    made.calibration = Calibration.of(RNG.normal(size=40), 10, groups=np.arange(40) // 4)
    return made


def dirty(name):
    made = one_class(name)
    made.calibration = Calibration.of(RNG.normal(size=40), 20, contamination=0.025)
    return made


def scores(values, nll=None):
    values = torch.as_tensor(values)
    return SimpleNamespace(score=values, fre=values + 1, nll=values if nll is None else nll)


def test_a_row_has_every_column_and_the_decision_of_its_p_value():
    model = one_class("cap")
    values = np.linspace(-4, 4, 81)
    rows, best = decide([model], [scores(values)], 0.1, 0.3)
    assert all(list(row) == [*COLUMNS, *DECISION] for row in rows)
    assert not best.any()
    p = [row["p_value"] for row in rows]
    np.testing.assert_array_equal(p, model.calibration.p_value(values))
    limit = model.calibration.threshold(0.1)
    for value, row in zip(values, rows, strict=True):
        assert row["is_anomaly"] == (value > limit)
        expected = "reject" if value > limit else "retest" if row["p_value"] <= 0.3 else "pass"
        assert row["decision"] == expected
    without, _ = decide([model], [scores(values)], 0.1, None)
    assert {row["decision"] for row in without} == {"reject", "pass"}
    assert [row["is_anomaly"] for row in without] == [row["is_anomaly"] for row in rows]


def test_a_picture_is_judged_by_the_class_that_it_is_likeliest_in():
    """A class with an odd picture gives foreign ones large p-values, and takes none of them."""
    tight, odd = one_class("tight", scale=0.01), one_class("odd", n=30)
    odd.calibration = Calibration.of(np.r_[odd.calibration.scores, 1e6], 20)
    foreign = scores(torch.tensor([5.0, 0.0]), torch.tensor([1.0, 1.0]))
    given = [foreign, scores(torch.tensor([9e5, 9e5]), torch.tensor([7.0, 7.0]))]
    rows, best = decide([tight, odd], given, 0.1, None)
    assert best.tolist() == [0, 0]
    assert [row["is_anomaly"] for row in rows] == [True, False]
    assert [row["p_value"] for row in rows] == tight.calibration.p_value([5.0, 0.0]).tolist()
    # a line that knows its product says so, and then nothing is guessed
    rows, best = decide([tight, odd], given, 0.1, None, category="odd")
    assert best.tolist() == [1, 1]
    assert {row["predicted_class"] for row in rows} == {"odd"}
    np.testing.assert_array_equal([row["p_value"] for row in rows], 2 / 32)


def test_a_p_value_and_its_decision_are_those_of_the_picture_s_own_class():
    """Three classes on scales of their own: what one takes for usual is far out in another."""
    classes = [one_class(name, scale=scale) for name, scale in (("a", 1), ("b", 100), ("c", 0.01))]
    values = torch.linspace(-3, 3, 31)
    for own, scale in enumerate((1, 100, 0.01)):
        likely = [torch.full((31,), 0.0 if j == own else 1.0) for j in range(3)]
        given = [scores(values * scale, nll) for nll in likely]
        rows, best = decide(classes, given, 0.1, None)
        assert (best == own).all()
        calibration = classes[own].calibration
        expected = calibration.p_value((values * scale).double().numpy())
        assert [row["p_value"] for row in rows] == expected.tolist()
        above = (values * scale).double().numpy() > calibration.threshold(0.1)
        assert [row["is_anomaly"] for row in rows] == above.tolist()


def test_format_1_takes_the_class_in_which_a_picture_is_least_unusual():
    fine, coarse = one_class("fine", scale=0.01), one_class("coarse", scale=100.0)
    values = [torch.tensor([0.0, 5.0, 5e3]), torch.tensor([900.0, 0.0, 5e3])]
    nll = [0.0, 0, 2], [0.0, 0, 1]
    given = [scores(v, torch.tensor(n)) for v, n in zip(values, nll, strict=True)]
    rows, best = decide([fine, coarse], given, 0.1, None, rule=1)
    assert best.tolist() == [0, 1, 1]  # of two that say the same the likelier one
    assert [row["predicted_class"] for row in rows] == ["fine", "coarse", "coarse"]
    assert [row["anomaly_score"] for row in rows] == [0.0, 0.0, 5e3]
    assert [row["fre"] for row in rows] == [1.0, 1.0, 5001.0]


def test_calibration_ranks_are_mid_ranks_of_each_coordinate():
    model = one_class("cap")
    known = model.layers[0].leading_coordinates
    values = torch.from_numpy(RNG.normal(size=3).astype(np.float32))
    found = calibration_ranks_of(model, [values])
    expected = (0.5 + (known >= values.numpy()).sum(0)) / (len(known) + 1)
    assert found.shape == (MOST_LEADING,)
    np.testing.assert_allclose(found[:3], expected)
    assert np.isnan(found[3:]).all()


@pytest.mark.parametrize(
    ("classes", "fpr", "words"),
    [
        ([one_class("cap")], 0.1, "promises a false-positive rate of at most 0.1, .* from 39 good"),
        (
            [one_class("cap")],
            0.01,
            "at most 0.025, .*; the target false-positive rate 0.01 needs 99 good pictures",
        ),
        ([one_class("cap", n_folds=0)], 0.1, r"from 39 new good pictures\.$"),
        ([grouped("cap")], 0.1, r"at most 0.1, .* from 40 good pictures in 10 groups held out"),
        (
            [grouped("cap")],
            0.01,
            r"at most 0.0909, .*; the target false-positive rate 0.01 needs 99 good groups",
        ),
        (
            [dirty("cap")],
            0.1,
            r"at most 0.122.* the 1 pictures with the highest scores are left",
        ),
        (
            [one_class("a"), one_class("b", n=19)],
            0.1,
            "thresholds a .*, b .* 19 .* smallest categ",
        ),
    ],
)
def test_the_promise_is_one_sentence(classes, fpr, words):
    sentence = calibration_sentence(classes, fpr, None)
    assert " ".join(sentence.split()) == sentence
    assert re.search(words, sentence)
    assert "looked at again" in calibration_sentence(classes, fpr, 0.3)
