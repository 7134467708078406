"""Pixel-level metrics of anomaly maps against masks, exact and in one pass over the images.

Both metrics are areas under a curve over the false-positive rate of all good pixels of all pictures
(Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5). The ROC curve shows
the share of defective pixels found; the PRO curve shows the share of each defective region found,
averaged over all regions. Both are means of one step per defective pixel, so no curve is built and
no score is binned: see :func:`_area_above`.

Kept until the last image: 4 bytes per good pixel and 8 per defective one for float32 maps. The
good ones are doubled for a moment while they are joined.
"""

from collections.abc import Iterable

import numpy as np

from dfm_mlflow.errors import ConfigError, DataError

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def pixel_metrics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], *, fpr_limit: float = 0.3
) -> dict[str, float]:
    """Pixel AUROC and AUPRO of a set of maps.

    Pixels of equal score cross the threshold together, and the curve is a straight line there.
    float32 maps are compared in float32; where any map is of another type, all in float64.

    pairs: (h, w), ndarray of shape (h, w)): Map (higher is more anomalous) and mask (nonzero is
      defective) of each image. It is read once, so a generator will do. Sizes may differ between
      images.
    fpr_limit: AUPRO is the area up to this false-positive rate, divided by it; in ``(0, 1]``.

    Examples
    --------
    >>> pixel_metrics([(np.array([[0.1, 0.2, 0.9]]), np.array([[0, 0, 1]]))])
    {'pixel_auroc': 1.0, 'pixel_aupro': 1.0}
    """
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit is {fpr_limit}, but must be above 0 and at most 1.")
    good, defects = [], []
    for index, pair in enumerate(pairs):
        scores, defective = _checked(index, *pair)
        good.append(scores[~defective])
        if defective.any():
            defects.append(_regions(scores, defective))
    if not defects or not any(part.size for part in good):
        return {}
    pooled = np.concatenate(good)
    good.clear()
    pooled.sort()
    return _areas(pooled, defects, fpr_limit)


def _checked(index: int, scores: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image's scores, float32 or float64, and its mask as bool."""
    scores, defective = np.asarray(scores), np.asarray(mask) != 0
    if scores.ndim != 2 or scores.shape != defective.shape:
        raise DataError(
            f"Image {index} has a map of shape {scores.shape} and a mask of shape "
            f"{defective.shape}; bring both to the same (height, width)."
        )
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64, copy=False)
    if np.isnan(scores).any():
        raise DataError(f"The map of image {index} holds NaN; every pixel needs a score.")
    return scores, defective


def _regions(scores: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one image's defective pixels, ascending, and the region number of each.

    The order serves speed alone: ascending keys make ``searchsorted`` walk through memory.
    """
    from scipy import ndimage  # late: only pictures with masks need it

    labels, _ = ndimage.label(defective, structure=EIGHT_NEIGHBOURS)
    found = scores[defective]
    order = np.argsort(found)
    return found[order], labels[defective][order] - 1


def _areas(
    good: np.ndarray, defects: list[tuple[np.ndarray, np.ndarray]], fpr_limit: float
) -> dict[str, float]:
    """Both metrics, from the ascending good scores and the output of :func:`_regions`.

    A pixel weighs the same as any other in the ROC curve, a region in the PRO curve.
    """
    pixel_sum = region_sum = 0.0
    n_pixels = n_regions = 0
    for scores, region in defects:
        above = 1 - np.searchsorted(good, scores, side="right") / len(good)
        at_least = 1 - np.searchsorted(good, scores, side="left") / len(good)
        sizes = np.bincount(region)
        overlaps = np.bincount(region, weights=_area_above(above, at_least, fpr_limit)) / sizes
        pixel_sum += _area_above(above, at_least, 1.0).sum()
        region_sum += overlaps.sum()
        n_pixels += len(scores)
        n_regions += len(sizes)
    return {
        "pixel_auroc": float(pixel_sum / n_pixels),
        "pixel_aupro": float(region_sum / n_regions),
    }


def _area_above(above: np.ndarray, at_least: np.ndarray, limit: float) -> np.ndarray:
    """Mean height, over false-positive rates from 0 to a limit, of one defective pixel's curve.

    The falling threshold meets the pixel's score at rate ``above`` and has passed it at
    ``at_least``. The curve is 0 before, 1 after, and in between, where good pixels have the same
    score, a straight line. Up to a limit of 1 its area is ``1 - (above + at_least) / 2``, whose
    mean is the Mann-Whitney statistic.

    above, at_least: (n,) float64: Share of good pixels that score above the pixel, and at least as
      high.

    Gives (n,) float64, in ``[0, 1]``.
    """
    stop = np.minimum(at_least, limit)
    run = stop - np.minimum(above, limit)
    width = at_least - above
    # A limit inside the line cuts it at the height run / width.
    under_line = np.divide(run * run, 2 * width, out=np.zeros_like(run), where=width > 0)
    share: np.ndarray = (under_line + (limit - stop)) / limit
    return share
