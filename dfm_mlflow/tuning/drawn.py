"""Good pictures as the network sees them, to draw defects into; how many of those are found."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.config import Options
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DfmError
from dfm_mlflow.network.extraction import Extraction, keys_of
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.tiles import scaled_mask
from dfm_mlflow.storage.store import threads_for
from dfm_mlflow.tuning.synthetic import Plan, draw_all, plans

N_DRAWN = 84  # each kind, size and strength twice
FEWEST = 5  # groups of pictures of a category, of which one is held out
MOST_FITTED = 1000  # pictures of a category: more make the estimate no better, and take minutes
_HELD_OUT = 0.2

_logger = logging.getLogger(__name__)


def network_inputs(extractor: Extractor, items: Sequence[Item]) -> Iterator[np.ndarray]:
    """Give pictures at the size at which the network sees them, without padding.

    Gives (H, W, 3) uint8.
    """

    def load(item: Item) -> np.ndarray:
        image = extractor.read(item.path)
        pixels = extractor.pixels.resized(image).permute(1, 2, 0).numpy()
        return np.ascontiguousarray(_without_padding(extractor, pixels, image.shape[:2]))

    with ThreadPoolExecutor(threads_for([i.path for i in items])) as pool:
        yield from pool.map(load, items)


def _without_padding(extractor: Extractor, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    parts = extractor.pixels.filled_part(size)
    high, wide = (round(s * part) for s, part in zip(extractor.size, parts, strict=True))
    top, left = (extractor.size[0] - high) // 2, (extractor.size[1] - wide) // 2
    return pixels[top : top + high, left : left + wide]


def regions_of(extractor: Extractor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray | None]:
    """Give the region of interest in each of the :func:`network_inputs`.

    Gives (H, W) bool, or None.
    """
    if extractor.roi is None:
        return [None] * len(sizes)
    seen: list[np.ndarray | None] = []
    for size in sizes:
        parts = extractor.pixels.filled_part(size)
        target = tuple(round(s * part) for s, part in zip(extractor.size, parts, strict=True))
        seen.append(scaled_mask(extractor.roi, (target[0], target[1])))
    return seen


@dataclass(frozen=True)
class SyntheticRecall:
    """How many drawn defects are found: an estimate, for real ones are others."""

    plans: list[Plan]
    found: np.ndarray  # (n,) bool: of each
    n_fitted: int
    n_held_out: int
    rates: np.ndarray  # (n,): least false-positive rate at which each is found; 0 for any

    @property
    def recall(self) -> float:
        """Share of the drawn defects that are found."""
        return float(self.found.mean())

    def of(self, size: str | None = None, strength: str | None = None) -> tuple[int, int]:
        """How many are found, of how many, of one `size`, one `strength`, or both."""
        mine = [
            (size is None or plan.size == size) and (strength is None or plan.strength == strength)
            for plan in self.plans
        ]
        return int(self.found[mine].sum()), sum(mine)

    def metrics(self) -> dict[str, float]:
        """Give ``synthetic_recall``, and of each size and strength."""
        parts = {plan.size: self.of(size=plan.size) for plan in self.plans}
        parts |= {plan.strength: self.of(strength=plan.strength) for plan in self.plans}
        named = {f"synthetic_recall/{name}": k / n for name, (k, n) in parts.items()}
        return {"synthetic_recall": self.recall} | named

    def sentence(self) -> str:
        """Say what it means."""
        return (
            f"Of {len(self.plans)} defects drawn into {self.n_held_out} good pictures that were "
            f"held out, {self.recall:.0%} are found at the threshold: an estimate on drawn "
            "defects, not on real ones."
        )


def synthetic_recall(
    options: Options,
    extractor: Extractor,
    extraction: Extraction,
    items: Sequence[Item],
    weights: dict[str, str],
    groups: Sequence[str] | None,
) -> SyntheticRecall | None:
    """Draw defects into held-out good pictures, and count those that are found.

    A detector is fitted to the features of four fifths of the pictures, which costs no pass of the
    network, and judges defects that are drawn into the others, at its own threshold.
    """
    held_out, fitted = _hold_out(extraction, items, groups, options.seed)
    if not held_out:
        _logger.info("Too few good pictures to hold some out and to draw defects into them.")
        return None
    n = len(extraction.kept)
    times = len(extraction.features[0]) // n  # each picture and its copies
    part = Extraction(
        [f[[j * n + i for j in range(times) for i in fitted]] for f in extraction.features],
        list(range(len(fitted))),
        {},
        [extraction.sizes[i] for i in fitted],
        {
            row: extraction.digests[extraction.kept[i]]
            for row, i in enumerate(fitted)
            if extraction.kept[i] in extraction.digests
        },
    )
    labels = [items[i].category for i in fitted]
    own = None if groups is None else [groups[i] for i in fitted]
    try:
        detector = AnomalyDetector.fit(options, extractor, part, labels, weights, own)
    except DfmError as error:  # the whole set can be fitted, a part of it cannot
        _logger.info("No defects are drawn: %s", error)
        return None
    dealt = plans(N_DRAWN, options.seed)
    sources = [held_out[i] for i in np.resize(np.arange(len(held_out)), len(dealt))]
    inputs = network_inputs(extractor, [items[i] for i in sources])
    regions = regions_of(extractor, [extraction.sizes[i] for i in sources])
    drawn = [picture for picture, _ in draw_all(inputs, dealt, options.seed, regions)]
    scored = detector.score(drawn, progress="drawn defects")
    flagged = scored["is_anomaly"].to_numpy(bool)
    least = {c.name: c.calibration.smallest_p_value for c in detector.classes}
    p = scored["p_value"].to_numpy(float)
    rates = np.where(p > scored["predicted_class"].map(least).to_numpy(float), p, 0)
    return SyntheticRecall(dealt, flagged, len(fitted), len(set(sources)), rates)


def _hold_out(
    extraction: Extraction, items: Sequence[Item], groups: Sequence[str] | None, seed: int
) -> tuple[list[int], list[int]]:
    """Choose whole groups of each category to hold out, and pictures to fit, by their contents."""
    keys = keys_of(extraction)
    held_out: list[int] = []
    fitted: list[int] = []
    for category in dict.fromkeys(item.category for item in items):
        mine = [i for i, item in enumerate(items) if item.category == category]
        mine.sort(key=keys.__getitem__)
        numbers = group_rows(
            [keys[i] for i in mine], groups and [groups[i] for i in mine], seed=seed
        )
        n_groups = int(numbers.max()) + 1
        if n_groups < FEWEST:
            return [], []
        out = numbers < max(1, round(_HELD_OUT * n_groups))  # numbered by a hash: a random draw
        held_out += [i for i, is_out in zip(mine, out, strict=True) if is_out]
        fitted += [i for i, is_out in zip(mine, out, strict=True) if not is_out][:MOST_FITTED]
    return held_out, fitted
