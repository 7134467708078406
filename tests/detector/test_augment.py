import numpy as np
import pytest

from dfm_mlflow.detector import augment as deciding
from dfm_mlflow.detector.augment import Worth, chosen, extract_to_fit, try_some, worth_of_copies
from dfm_mlflow.network.copies import COPIES, turned

from ..detectors import fit, pictures, png


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
    assert worth.kept() is kept
    assert worth.n == 12


@pytest.mark.parametrize(
    ("turns", "flips", "augment"),
    [
        (0.9, 1.0, "rotations"),  # parts that lie freely
        (0.9, 0.1, "rotations"),  # the same, of parts whose mirror image is another part
        (0.5, 0.9, "flips"),  # parts that stand upright, alike on both sides
        (-0.5, 0.9, "flips"),
        (0.3, 0.3, "none"),  # not surely above the share that is asked
        (-0.5, -0.2, "none"),
    ],
)
def test_turns_are_for_parts_that_lie_freely(turns, flips, augment):
    worth = {"rotations": Worth(turns, 0.05, 30), "flips": Worth(flips, 0.05, 30)}

    def takes(other=None, few=False):
        classes = {k: {"part": w} | ({"other": other} if other else {}) for k, w in worth.items()}
        return chosen(classes, few)

    assert takes() == augment
    # a class that any copies would teach leaves the decision to the other
    assert takes(Worth(1.0, 0.05, 30)) == augment
    # and one that copies harm forbids them
    assert takes(Worth(-1.0, 0.05, 30)) == "none"
    # of few pictures less is asked, and where each kind teaches all are taken
    assert takes(few=True) == ("all" if min(turns, flips) > 0.2 else augment)


@pytest.mark.parametrize("lies", ["rotations", "flips", "none"])
def test_pictures_decide_by_how_they_lie(detector, lies):
    """A part that lies in every way which the copies show, as a line would bring it."""
    rng = np.random.default_rng(1)
    ways = COPIES[lies]
    images = [png(turned(part(rng), ways[rng.integers(len(ways))])) for _ in range(120)]
    given = detector.options.model_copy(update={"augment": "auto"})
    _, _, trial = extract_to_fit(detector.extractor, images, ["stripes"] * 120, given)
    assert trial.augment == lies


def part(rng):
    """A part without symmetry, of which six patterns vary."""
    of_part = np.random.default_rng(0)
    plain, patterns = of_part.uniform(60, 200, (8, 8)), of_part.normal(size=(6, 8, 8))
    cells = plain + 14 * np.tensordot(rng.normal(size=6), patterns, 1)
    image = np.kron(cells, np.ones((8, 8))) + rng.normal(0, 3, (64, 64))
    return np.repeat(image.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(("pixels", "augment"), [(24 * 64**2, "all"), (24 * 64**2 - 1, "none")])
def test_all_copies_are_for_few_pictures_that_cost_little(detector, monkeypatch, pixels, augment):
    monkeypatch.setattr(deciding, "PIXELS_OF_FEW", pixels)
    monkeypatch.setattr(deciding, "worth_of_copies", lambda *given: Worth(0.15, 0.01, 8))
    given = detector.options.model_copy(update={"augment": "auto"})
    _, _, trial = extract_to_fit(detector.extractor, pictures(24), ["stripes"] * 24, given)
    assert trial.augment == augment


@pytest.mark.parametrize(("n", "augment"), [(99, "all"), (100, "none")])
def test_a_set_is_as_large_as_it_is_where_some_of_it_are_tried(detector, monkeypatch, n, augment):
    monkeypatch.setattr(deciding, "worth_of_copies", lambda *given: Worth(0.15, 0.01, 8))
    given = detector.options.model_copy(update={"augment": "auto"})
    assert try_some(detector.extractor, pictures(n), ["stripes"] * n, given).augment == augment
