import pytest

from dfm_mlflow.detector.augment import extract_to_fit

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
