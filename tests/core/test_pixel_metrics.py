import weakref

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from dfm_mlflow.core.pixel_metrics import pixel_metrics
from dfm_mlflow.errors import ConfigError, DataError

from ..conftest import examples


def reference(pairs, limit):
    """Both areas by their definition: one point of each curve per distinct threshold."""
    n_good = sum(int((mask == 0).sum()) for _, mask in pairs)
    n_defective = sum(int((mask != 0).sum()) for _, mask in pairs)
    regions = []
    for scores, mask in pairs:
        labels, n = ndimage.label(mask != 0, structure=np.ones((3, 3)))
        regions += [scores[labels == number] for number in range(1, n + 1)]
    fpr, tpr, pro = [0.0], [0.0], [0.0]
    for threshold in sorted({value for scores, _ in pairs for value in scores.flat}, reverse=True):
        fpr.append(sum(int((s[m == 0] >= threshold).sum()) for s, m in pairs) / n_good)
        tpr.append(sum(int((s[m != 0] >= threshold).sum()) for s, m in pairs) / n_defective)
        pro.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    return {
        "pixel_auroc": area_up_to(fpr, tpr, 1.0),
        "pixel_aupro": area_up_to(fpr, pro, limit) / limit,
    }


def area_up_to(x, y, limit):
    area = 0.0
    for left, right, low, high in zip(x, x[1:], y, y[1:], strict=False):
        if left >= limit:
            break
        if right > limit:
            high = low + (high - low) * (limit - left) / (right - left)
            right = limit
        area += (right - left) * (low + high) / 2
    return area


@st.composite
def tied_pairs(draw):
    """One to four small images of few distinct scores, with several regions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 12))
    share = draw(st.sampled_from([0.1, 0.3, 0.6, 0.9]))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
        scores = rng.integers(-levels, levels, shape).astype(dtype)
        pairs.append((scores, (rng.random(shape) < share) * np.uint8(255)))
    masks = np.concatenate([mask.ravel() for _, mask in pairs])
    assume(masks.any() and not masks.all())
    return pairs


@examples(200)
@given(pairs=tied_pairs(), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_agrees_with_the_definition(pairs, limit):
    assert pixel_metrics(pairs, fpr_limit=limit) == pytest.approx(
        reference(pairs, limit), abs=1e-9, rel=0
    )


@examples(30)
@given(pairs=tied_pairs())
def test_auroc_agrees_with_scikit_learn(pairs):
    truth = np.concatenate([mask.ravel() != 0 for _, mask in pairs])
    scores = np.concatenate([scores.ravel() for scores, _ in pairs])
    assert pixel_metrics(pairs)["pixel_auroc"] == pytest.approx(
        roc_auc_score(truth, scores), abs=1e-9
    )


@examples(30)
@given(pairs=tied_pairs())
def test_only_the_order_of_scores_counts(pairs):
    curved = [(np.exp(scores.astype(np.float64) / 3) - 7, mask) for scores, mask in pairs]
    assert pixel_metrics(curved) == pixel_metrics(pairs)


@examples(30)
@given(pairs=tied_pairs())
def test_at_limit_1_pro_of_single_pixel_regions_is_the_roc(pairs):
    # No two pixels of every second row and column touch, not even at a corner.
    apart = []
    for scores, mask in pairs:
        thin = np.zeros_like(mask)
        thin[::2, ::2] = mask[::2, ::2]
        apart.append((scores, thin))
    result = pixel_metrics(apart, fpr_limit=1.0)
    assume(result)
    assert result["pixel_aupro"] == pytest.approx(result["pixel_auroc"], abs=1e-12)


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_a_perfect_map_has_1_and_its_opposite_0(limit):
    mask = np.zeros((12, 9))
    mask[1:4, 2:9] = mask[8, 3] = mask[10:, :2] = 1
    perfect = pixel_metrics([(mask, mask)], fpr_limit=limit)
    assert perfect == {"pixel_auroc": 1.0, "pixel_aupro": 1.0}
    opposite = pixel_metrics([(-mask, mask)], fpr_limit=limit)
    assert opposite == {"pixel_auroc": 0.0, "pixel_aupro": 0.0}


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_a_constant_map_has_the_diagonal(limit):
    mask = np.zeros((10, 10))
    mask[2:5, 2:5] = mask[8, 8] = 1
    result = pixel_metrics([(np.full((10, 10), 3.0), mask)], fpr_limit=limit)
    # The diagonal rises to `limit` at the limit, so its mean height there is half of that.
    assert result == pytest.approx({"pixel_auroc": 0.5, "pixel_aupro": limit / 2})


@pytest.mark.parametrize("found", ["large", "tiny"])
def test_large_and_tiny_regions_weigh_the_same_in_aupro_alone(found):
    large, tiny = np.zeros((2, 20, 20))
    large[:12, :12] = 1
    tiny[18, 18] = 1
    # The region that is not found scores below every good pixel.
    scores = large - tiny if found == "large" else tiny - large
    result = pixel_metrics([(scores, large + tiny)])
    share = (144 if found == "large" else 1) / 145
    assert result == pytest.approx({"pixel_auroc": share, "pixel_aupro": 0.5})


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    scores = mask.astype(float)
    scores[0, 4] = -1
    assert pixel_metrics([(scores, mask)])["pixel_aupro"] == pytest.approx(1 / 2)


def test_regions_of_different_images_are_different_regions():
    mask = np.array([[0, 0, 1, 1]])
    found, missed = np.array([[0, 0, 1, 1]]), np.array([[0, 0, -1, -1]])
    assert pixel_metrics([(found, mask), (found, mask), (missed, mask)])[
        "pixel_aupro"
    ] == pytest.approx(2 / 3)


def test_good_pixels_of_all_images_share_one_false_positive_rate():
    defective = (np.array([[5.0]]), np.array([[1]]))
    quiet = (np.zeros((3, 30)), np.zeros((3, 30)))
    loud = (np.full((1, 10), 9.0), np.zeros((1, 10)))
    # 10 of 100 good pixels come first: found from rate 0.1 to the limit of 0.3.
    result = pixel_metrics([loud, defective, quiet])
    assert result == pytest.approx({"pixel_auroc": 0.9, "pixel_aupro": 2 / 3})


def test_the_order_of_images_does_not_matter():
    rng = np.random.default_rng(3)
    pairs = [(rng.random((n, 9)), rng.random((n, 9)) < 0.2) for n in (4, 8, 15)]
    assert pixel_metrics(pairs[::-1]) == pytest.approx(pixel_metrics(pairs), abs=1e-12)


def test_maps_are_compared_in_their_own_precision():
    scores, mask = np.array([[1.0, 1.0 + 1e-12]]), np.array([[0, 1]])
    narrow = scores.astype(np.float32)
    assert pixel_metrics([(scores, mask)])["pixel_auroc"] == 1.0
    assert pixel_metrics([(narrow, mask)])["pixel_auroc"] == 0.5
    empty = np.zeros((0, 2))
    assert pixel_metrics([(narrow, mask), (empty, empty)])["pixel_auroc"] == 0.5


def test_reads_a_generator_keeps_no_map_and_changes_none():
    seen = []

    def pairs():
        for number in range(6):
            scores = np.random.default_rng(number).random((8, 8))
            before = scores.copy()
            yield scores, before > 0.8
            np.testing.assert_array_equal(scores, before)
            seen.append(weakref.ref(scores))
            # The map of this round is still in use here; all earlier ones are gone.
            assert not any(ref() is not None for ref in seen[:-1])

    assert pixel_metrics(pairs())["pixel_auroc"] == 1.0
    assert len(seen) == 6


@pytest.mark.parametrize("fill", [0, 1])
def test_nothing_to_compare_is_empty(fill):
    assert pixel_metrics([(np.ones((4, 4)), np.full((4, 4), fill))]) == {}
    assert pixel_metrics([]) == {}


@pytest.mark.parametrize(
    ("scores", "mask"),
    [((4, 5), (5, 4)), ((4, 5), (4, 5, 1)), ((2, 4, 5), (2, 4, 5)), ((4,), (4,))],
)
def test_a_map_and_a_mask_of_other_shapes_are_refused(scores, mask):
    fine = (np.zeros((4, 5)), np.zeros((4, 5)))
    with pytest.raises(DataError, match="Image 1 has a map of shape .* and a mask of shape"):
        pixel_metrics([fine, (np.zeros(scores), np.zeros(mask))])


def test_nan_is_refused():
    scores = np.zeros((3, 3), dtype=np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(DataError, match="image 0 holds NaN"):
        pixel_metrics([(scores, np.eye(3))])


def test_infinite_scores_are_ranked():
    scores, mask = np.array([[-np.inf, 0.0, np.inf, np.inf]]), np.array([[0, 0, 0, 1]])
    assert pixel_metrics([(scores, mask)])["pixel_auroc"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("limit", [0, -0.1, 1.1, float("nan")])
def test_a_limit_outside_0_to_1_is_refused(limit):
    with pytest.raises(ConfigError, match="fpr_limit"):
        pixel_metrics([], fpr_limit=limit)
