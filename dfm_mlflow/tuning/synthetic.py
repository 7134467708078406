"""Defects drawn into good pictures, so that detectors can be compared where no defect is known.

Seven kinds in three sizes and two strengths, because nobody knows what the real ones will look
like: a choice that suits small dark specks alone fails on a large faint stain. A defect lies where
the picture shows something (an object rather than the empty background behind it) and inside the
region of interest.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from dfm_mlflow.errors import DataError

# Share of the picture's area that a defect covers, from and to.
SIZES = {"small": (0.0008, 0.003), "medium": (0.003, 0.02), "large": (0.02, 0.12)}
# 1 is all that a kind can do to a picture.
STRENGTHS = {"faint": (0.15, 0.4), "strong": (0.5, 1.0)}
# A defect that changes fewer pixels by so many levels is none.
_FEW, _LEVELS = 9, 4
_ATTEMPTS = 8


@dataclass(frozen=True)
class Plan:
    """What kind of defect is drawn, how large and how strong."""

    kind: str  # one of :data:`KINDS`
    size: str  # one of :data:`SIZES`
    strength: str  # one of :data:`STRENGTHS`

    def __str__(self) -> str:
        return f"{self.strength} {self.size} {self.kind.replace('_', ' ')}"


@dataclass(frozen=True, eq=False)
class _Spot:
    """Where a defect lies: a window of the picture, and how much of each pixel belongs to it."""

    window: tuple[slice, slice]
    alpha: np.ndarray  # (h, w) in [0, 1]


def plans(n: int, seed: int = 42) -> list[Plan]:
    """Deal `n` plans by a `seed`, every combination of kind, size and strength equally often."""
    cells = [Plan(*cell) for cell in itertools.product(KINDS, SIZES, STRENGTHS)]
    rng = np.random.default_rng(seed)
    dealt: list[Plan] = []
    while len(dealt) < n:
        dealt += [cells[i] for i in rng.permutation(len(cells))]
    return dealt[:n]


def draw_defect(
    image: np.ndarray,
    plan: Plan,
    rng: Generator,
    *,
    other: np.ndarray | None = None,
    inside: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one defect into a copy of a good picture.

    Shapes: image (H, W, 3) uint8; other (h, w, 3) uint8; inside (H, W) bool; gives picture (H, W,
    3) uint8: equal to `image` outside the mask; mask (H, W) bool: pixels that differ.
    """
    inside = np.ones(image.shape[:2], dtype=bool) if inside is None else inside
    if not inside.any():
        raise DataError("The region for synthetic defects has no pixel: paint a larger roi.")
    places = _places(image, inside)
    picture, mask = image, np.zeros(inside.shape, dtype=bool)
    for attempt in range(_ATTEMPTS):
        # a blur of an even surface changes nothing: elsewhere, and at last by another kind
        kind = plan.kind if attempt < _ATTEMPTS - 2 else "brightness"
        strength = rng.uniform(*STRENGTHS[plan.strength])
        area = np.exp(rng.uniform(*np.log(SIZES[plan.size]))) * inside.size
        spot = (_scar if kind == "scar" else _patch)(inside, places, area, rng)
        picture = _blend(image, spot, KINDS[kind](image, spot, strength, rng, other))
        mask = (picture != image).any(axis=2)
        change = np.abs(picture.astype(np.int16) - image).max(axis=2)
        if (change >= _LEVELS).sum() >= min(_FEW, inside.sum()):
            break
    return picture, mask


# -- where -----------------------------------------------------------------------------------------


def _places(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cumulated odds of each pixel to be a defect's middle: where the picture shows something."""
    grey = image.mean(axis=2, dtype=np.float32)
    side = max(3, min(grey.shape) // 24)
    mean = ndimage.uniform_filter(grey, side)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, side) - mean**2, 0))
    mean_spread = float(spread.mean())
    # squared: else a small object would lose most defects to the noise of a large background
    odds = np.minimum(spread, 2 * mean_spread) ** 2 + 0.02 * mean_spread**2 + 1e-3
    return np.cumsum(np.where(inside, odds, 0), dtype=np.float64)


def _patch(inside: np.ndarray, places: np.ndarray, area: float, rng: Generator) -> _Spot:
    """Lay out a ragged ellipse, seldom a box."""
    stretch = np.exp(rng.uniform(-0.8, 0.8))
    radii = np.sqrt(area / np.pi) * np.array([stretch, 1 / stretch])
    reach = int(np.ceil(1.6 * radii.max())) + 2
    window, y, x = _window(inside, places, reach, rng)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / radii[0]
    across = (y * np.cos(angle) - x * np.sin(angle)) / radii[1]
    if rng.random() < 0.25:
        distance = np.maximum(np.abs(along), np.abs(across)) * 1.13  # of the ellipse's area
    else:
        distance = np.hypot(along, across) + 0.45 * noise(y.shape, max(2, reach / 2), rng)
    # one pixel of soft border for a small patch, more for a large one
    soft = max(1.0, 0.1 * radii.min()) / radii.min()
    return _within(inside, window, np.clip((1 - distance) / soft + 0.5, 0, 1))


def _scar(inside: np.ndarray, places: np.ndarray, area: float, rng: Generator) -> _Spot:
    """Lay out a long bent line; larger ones are longer rather than wider."""
    side = np.sqrt(inside.size)
    width = max(1.2, side * rng.uniform(0.005, 0.012))
    length = np.clip(area / width, 6 * width, 0.9 * side)
    width = max(width, min(area / length, 0.03 * side))
    reach = int(np.ceil(length / 2 + width)) + 2
    window, y, x = _window(inside, places, reach, rng)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35) / length
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle) - bend * along**2
    across = across + 0.5 * width * noise(y.shape, max(2, length / 6), rng)
    half = 0.5 * width * np.sqrt(np.clip(1 - (2 * along / length) ** 2, 0, 1))
    return _within(inside, window, np.clip(half - np.abs(across) + 0.5, 0, 1) * (half > 0))


def _window(
    inside: np.ndarray, places: np.ndarray, reach: int, rng: Generator
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Choose a middle and cut the window around it; coordinates are relative to the middle."""
    chosen = np.searchsorted(places, rng.random() * places[-1], side="right")
    row, column = divmod(min(int(chosen), inside.size - 1), inside.shape[1])
    rows = slice(max(0, row - reach), min(inside.shape[0], row + reach + 1))
    columns = slice(max(0, column - reach), min(inside.shape[1], column + reach + 1))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    return (rows, columns), y - row, x - column


def _within(inside: np.ndarray, window: tuple[slice, slice], alpha: np.ndarray) -> _Spot:
    return _Spot(window, np.where(inside[window], alpha, 0))


def noise(shape: tuple[int, ...], period: float, rng: Generator) -> np.ndarray:
    """Perlin-like noise of mean about 0 and standard deviation about 0.5: three octaves."""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(3):
        step = max(1.0, period / 2**octave)
        grid = rng.normal(size=[int(np.ceil(s / step)) + 3 for s in shape]).astype(np.float32)
        y, x = (np.arange(s, dtype=np.float32) / step + rng.random() + 0.5 for s in shape)
        total += (
            ndimage.map_coordinates(grid, np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
            / 2**octave
        )
    return total * 0.6


# -- what ------------------------------------------------------------------------------------------


def _blend(image: np.ndarray, spot: _Spot, fill: np.ndarray) -> np.ndarray:
    """Lay a filling of the window's shape over the picture."""
    picture = image.copy()
    here = picture[spot.window].astype(np.float32)
    mixed = here + spot.alpha[:, :, None] * (fill - here)
    picture[spot.window] = mixed.round().clip(0, 255)
    return picture


def _shape(spot: _Spot) -> tuple[int, int]:
    return spot.alpha.shape


def _cut_paste(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Cut a patch elsewhere, perhaps turned, and paste it."""
    source = image if other is None or rng.random() < 0.5 else other
    h, w = (min(a, b) for a, b in zip(_shape(spot), source.shape[:2], strict=True))
    top, left = rng.integers(0, source.shape[0] - h + 1), rng.integers(0, source.shape[1] - w + 1)
    patch = source[top : top + h, left : left + w]
    patch = patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    patch = np.resize(patch, (*_shape(spot), 3)) if patch.shape[:2] != _shape(spot) else patch
    here = image[spot.window].astype(np.float32)
    jitter = rng.normal(0, 12) * strength
    return here + min(1.0, 0.3 + strength) * (patch + jitter - here)


def _scratch(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Darken or brighten evenly, or fill with one colour of the picture."""
    here = image[spot.window].astype(np.float32)
    if rng.random() < 0.3:
        colour: np.ndarray = image[rng.integers(image.shape[0]), rng.integers(image.shape[1])]
        shift: float = rng.choice([-1, 1]) * 25 * strength
        return here + strength * (colour - here) + shift
    shift = rng.choice([-1, 1]) * 110 * strength
    return here + shift


def _texture(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Lay Perlin noise of two random tints over the surface."""
    here = image[spot.window].astype(np.float32)
    mean = here.mean(axis=(0, 1))
    tints = mean + rng.normal(0, 55, 3) * _hue(image) + rng.normal(0, 55)
    weave = noise(_shape(spot), np.exp(rng.uniform(np.log(2), np.log(24))), rng)[:, :, None]
    woven: np.ndarray = here + strength * (tints + 70 * weave - here)
    return woven


def _blurred(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Smear."""
    here = image[spot.window].astype(np.float32)
    sigma = (0.5 + 3 * strength) * max(image.shape[:2]) / 256
    smeared: np.ndarray = ndimage.gaussian_filter(here, (sigma, sigma, 0))
    return smeared


def _brightness(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Stain: brighten or darken, of coloured pictures some channels more than others."""
    here = image[spot.window].astype(np.float32)
    shift: float = rng.choice([-1, 1]) * 75 * strength
    return here + shift * (1 + 0.5 * rng.normal(size=3) * _hue(image))


def _distortion(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Push the surface aside: scratches and edges bend."""
    here = image[spot.window].astype(np.float32)
    reach = (0.02 + 0.06 * strength) * max(image.shape[:2])
    reach = min(reach, 0.35 * min(_shape(spot)))
    period = max(3.0, 0.4 * min(_shape(spot)))
    y, x = np.mgrid[: here.shape[0], : here.shape[1]].astype(np.float32)
    y += reach * spot.alpha * (noise(_shape(spot), period, rng) + rng.choice([-1, 1]) * 0.7)
    x += reach * spot.alpha * (noise(_shape(spot), period, rng) + rng.choice([-1, 1]) * 0.7)
    moved = [
        ndimage.map_coordinates(here[:, :, c], [y, x], order=1, mode="nearest") for c in range(3)
    ]
    return np.stack(moved, axis=2)


def _missing(
    image: np.ndarray, spot: _Spot, strength: float, rng: Generator, other: np.ndarray | None
) -> np.ndarray:
    """Take the part away: what is around it, or the background, closes over it."""
    here = image[spot.window].astype(np.float32)
    outside = (spot.alpha <= 0).astype(np.float32)
    if rng.random() < 0.5 or not outside.any():
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        fill = np.broadcast_to(np.median(edge, axis=0), here.shape)
    else:
        sigma = max(1.0, 0.25 * min(_shape(spot)))
        weight = ndimage.gaussian_filter(outside, sigma)[:, :, None]
        known = ndimage.gaussian_filter(here * outside[:, :, None], (sigma, sigma, 0))
        mean = here[outside > 0].mean(axis=0)
        fill = np.where(weight > 1e-4, known / np.maximum(weight, 1e-4), mean)
    return here + min(1.0, 0.25 + strength) * (fill - here)


def _hue(image: np.ndarray) -> float:
    """0 for a grey picture, whose defects are grey too."""
    sample = image[::8, ::8].astype(np.int16)
    return float((np.ptp(sample, axis=2) > 4).mean() > 0.02)


KINDS: dict[str, Callable[..., np.ndarray]] = {
    "cut_paste": _cut_paste,
    "scar": _scratch,
    "blob": _texture,
    "blur": _blurred,
    "brightness": _brightness,
    "distortion": _distortion,
    "missing": _missing,
}


def draw_all(
    images: Iterable[np.ndarray],
    dealt: Sequence[Plan],
    seed: int,
    inside: Sequence[np.ndarray | None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw each plan into the next picture, with patches of the one before it.

    Shapes: images (H, W, 3) uint8; inside (H, W) bool, or None.
    """
    other, inside = None, inside or [None] * len(dealt)
    for i, (image, plan, region) in enumerate(zip(images, dealt, inside, strict=True)):
        rng = np.random.default_rng([seed, i])
        yield draw_defect(image, plan, rng, other=other, inside=region)
        other = image
