import numpy as np
import pytest

from dfm_mlflow.detector.augment import extract_to_fit, worth_of_copies

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit()


@pytest.mark.parametrize(("augment", "times"), [("none", 1), ("flips", 2), ("all", 8)])
def test_what_is_given_is_done(detector, augment, times):
    given = detector.options.model_copy(update={"augment": augment})
    _, extraction, trial = extract_to_fit(detector.extractor, pictures(3), ["stripes"] * 3, given)
    assert trial.augment == augment
    assert len(extraction.kept) == 3
    assert {len(f) for f in extraction.features} == {3 * times}


def test_few_pictures_can_tell_nothing_and_get_no_copies(detector):
    given = detector.options.model_copy(update={"augment": "auto"})
    _, extraction, trial = extract_to_fit(detector.extractor, pictures(8), ["stripes"] * 8, given)
    assert trial.augment == "none"
    assert trial.sentence
    assert {len(f) for f in extraction.features} == {8}


@pytest.mark.parametrize(("foreign", "kept"), [(False, True), (True, False)])
def test_copies_of_cells_are_worth_what_they_teach(foreign, kept):
    """Cells of 30 features that vary in 12: copies that vary in the same teach, others do not."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 12, 30))

    def cells(m, which=0):
        inside = rng.normal(size=(m, 1, 12)) + 0.2 * rng.normal(size=(m, 4, 12))
        return inside @ mixing[which] + 0.05 * rng.normal(size=(m, 4, 30))

    worth = worth_of_copies([cells(12)], [cells(12, int(foreign))], [cells(12)], 0.99)
    assert worth.kept is kept
    assert worth.n == 12
