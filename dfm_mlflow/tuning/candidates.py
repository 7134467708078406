"""Choose the configuration that tells held-out good pictures from synthetic defects best.

Features of every candidate layer are extracted once. One Gram matrix and one
decomposition a fold serve all PCA levels of a layer and pooling; normalisation, aggregation and
combinations of layers cost hardly anything on top. The test pictures are never asked for.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.comparison import Comparison, compare_auroc
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.detector.class_fit import normaliser_without_fold
from dfm_mlflow.detector.class_model import score_maps
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.maps import normaliser_of
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.network.pooling import kernel_of, pool
from dfm_mlflow.tuning.crossfit_levels import crossfit_with

# What is tried where the user gave nothing: how far a position of the picture is a place of the
# part. Layers, scales, levels and fractions were searched, too, until the default came to hold all
# scales: what synthetic defects preferred was now and then far worse on real ones.
# See docs/tuning.md.
GRID: dict[str, tuple[str, ...]] = {"normalize": ("blend", "global", "position")}
SEARCHED = tuple(GRID)
# A candidate replaces the preset only if it is better by more than MARGIN, and if resampled
# pictures say with this confidence that it is better by more than LEAST. See docs/tuning.md.
MARGIN, LEAST, CONFIDENCE = 0.015, 0.0075, 0.95
ALIKE = 0.003  # candidates as close to the best as this: the one that changes least is taken
_RESAMPLED, _RESAMPLES = 20, 1000

RoiCells = Callable[[tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """Features of good pictures of one class, and of defects drawn into them.

    Shapes: good, defects (n, C, h, w) and (m, C, h, w); folds, their_folds (n,) and (m,) int.
    """

    good: dict[str, Tensor]
    defects: dict[str, Tensor]
    folds: np.ndarray
    their_folds: np.ndarray
    base: int | str  # pooling rule of these features
    size: tuple[int, int]  # of the network's input

    def kernel(self, layer: str, rule: int | str) -> tuple[int, int]:
        """How these features of a `layer` are pooled to follow a `rule`, as height and width."""
        return kernel_of(rule, self.base, self.good[layer], self.size)


@dataclass(frozen=True, eq=False)
class Scored:
    """One candidate with the scores of held-out good pictures and of defects."""

    options: Options  # resolved
    good: np.ndarray  # (n,) float64: held-out scores of good pictures
    defects: np.ndarray  # (m,) float64: of defects that were drawn into them

    @property
    def auroc(self) -> float:
        """How well it tells the two apart; plans are dealt evenly, so all kinds count alike."""
        return auroc(*_joined(self)) or 0.0


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    index: int  # of the candidate; 0 is the preset's own configuration
    # Of the best challenger with the preset; None where there was no challenger.
    comparison: Comparison | None
    sentence: str


def candidates(given: Options) -> list[Options]:
    """List the configurations that are tried: the preset's own first, then the grid's."""
    start = given.resolve()
    if "cell" in start.rows_are or "," in start.aggregate + start.normalize:
        raise ConfigError(
            f"subspace={start.subspace} leaves tune nothing to choose: its maps lie on one scale. "
            "Train with the preset as it is."
        )
    axes: dict[str, tuple[str, ...]] = dict(GRID)
    if start.score == "nll":  # one number a picture: nothing to normalise
        axes |= {"normalize": (start.normalize,)}
    values = [
        axes[name] if getattr(given, name) == "auto" else (getattr(start, name),)
        for name in SEARCHED
    ]
    grid = (
        start.model_copy(update=dict(zip(SEARCHED, chosen, strict=True)))
        for chosen in itertools.product(*values)
    )
    return list(dict.fromkeys([start, *grid]))


def layers_of(options: Sequence[Options]) -> tuple[str, ...]:
    """Every layer that a candidate of `options` uses."""
    return tuple(dict.fromkeys(layer for o in options for layer in o.layer_names))


def score_candidates(
    options: Sequence[Options],
    pictures: Sequence[Pictures],
    roi_cells: RoiCells,
) -> list[Scored]:
    """Score good pictures and defects under every candidate; several classes one after another."""
    parts = [_score_class(options, p, roi_cells) for p in pictures]
    found: list[Scored] = []
    seen: set[bytes] = set()
    for option, *scores in zip(options, *parts, strict=True):
        # p-values are per class, so classes are brought to one scale by their good pictures
        scale = [1.0] if len(scores) == 1 else [float(np.mean(np.abs(g))) or 1.0 for g, _ in scores]
        good, defects = (
            np.concatenate([s[i] / f for s, f in zip(scores, scale, strict=True)]) for i in (0, 1)
        )
        key = good.tobytes() + defects.tobytes()
        if key not in seen:  # on a small grid the top 2 % and 5 % are the same cell
            seen.add(key)
            found.append(Scored(option, good, defects))
    return found


def choose(scored: Sequence[Scored], seed: int = 0) -> Choice:
    """Choose the candidate that is most surely better than the first, or else the first.

    Of many candidates the best looks better than it is, and synthetic defects are not the real
    ones: a small lead says nothing. Of those that are clearly better and nearly alike, the one
    with the fewest options changed is taken.
    """
    if len(scored) == 1:
        return Choice(0, None, "Every option is given: there was nothing to choose.")
    areas = np.array([s.auroc for s in scored])
    ahead = [int(i) for i in np.argsort(-areas, kind="stable")[:_RESAMPLED] if i]
    compared = {i: _compare(scored[i], scored[0], seed) for i in ahead}
    better = [i for i, c in compared.items() if c.difference > MARGIN and c.lower > LEAST]
    near = [i for i in better if areas[i] >= areas[better].max() - ALIKE]
    if near:
        best = min(near, key=lambda i: (len(_changes(scored[i], scored[0])), -areas[i]))
    else:
        best = max(compared, key=lambda i: compared[i].lower)
    found = compared[best]
    figures = (
        f"synthetic AUROC {found.challenger:.4f} against {found.champion:.4f}, a lead of "
        f"{found.difference:+.4f}, of at least {found.lower:+.4f} with {CONFIDENCE:.0%} confidence"
    )
    preset = scored[0].options.preset
    if near:
        changed = ", ".join(_changes(scored[best], scored[0]))
        return Choice(best, found, f"Chosen over preset={preset}: {changed} ({figures}).")
    return Choice(
        0,
        found,
        f"preset={preset} stays: the best of {len(scored) - 1} others has {figures}; "
        f"a lead of more than {MARGIN}, and of at least {LEAST} with that confidence, is needed.",
    )


def _changes(scored: Scored, first: Scored) -> list[str]:
    after, before = scored.options, first.options
    return [
        f"{name}={getattr(after, name)}"
        for name in SEARCHED
        if getattr(after, name) != getattr(before, name)
    ]


def _compare(challenger: Scored, champion: Scored, seed: int) -> Comparison:
    defective, scores = _joined(challenger)
    return compare_auroc(
        defective,
        scores,
        _joined(champion)[1],
        n_resamples=_RESAMPLES,
        confidence=CONFIDENCE,
        seed=seed,
    )


def _joined(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    defective = np.repeat([False, True], [len(scored.good), len(scored.defects)])
    return defective, np.concatenate([scored.good, scored.defects])


# -- one class -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Level:
    """One layer, pooled, under one PCA level: raw FRE maps, and NLL up to a constant."""

    grid: Grid
    maps: tuple[Tensor, Tensor]  # of good pictures and of defects
    nll: tuple[Tensor, Tensor]


_Known = dict[tuple[str, tuple[int, int], float], _Level]  # by layer, kernel and PCA level


def _score_class(
    options: Sequence[Options], pictures: Pictures, roi_cells: RoiCells
) -> list[tuple[np.ndarray, np.ndarray]]:
    known: _Known = {}
    levels = sorted({float(o.pca_level) for o in options})
    for layer, rule in dict.fromkeys(one for o in options for one in o.feature_maps):
        kernel = pictures.kernel(layer, rule)
        if (layer, kernel, levels[0]) not in known:
            for level, found in _levels(pictures, layer, kernel, levels, roi_cells):
                known[layer, kernel, level] = found
    normalisers = _Normalisers(pictures)
    return [_score(o, known, normalisers, pictures) for o in options]


def _levels(
    pictures: Pictures,
    layer: str,
    kernel: tuple[int, int],
    levels: Sequence[float],
    roi_cells: RoiCells,
) -> Iterator[tuple[float, _Level]]:
    pooled = [pool(f, kernel) for f in (pictures.good[layer], pictures.defects[layer])]
    _, c, h, w = pooled[0].shape
    grid = Grid((c, h, w), roi_cells((h, w)))
    x, others = (grid.rows(f).cpu().numpy() for f in pooled)
    folds = pictures.folds, pictures.their_folds
    for level, found in crossfit_with(x, folds[0], others, folds[1], levels):
        both = found.rows, found.others
        noise = float(found.rows.fre.mean()) / max(1.0, x.shape[1] - found.n_components) or 1.0
        maps = [grid.fre_map(torch.from_numpy(h.residual())) for h in both]
        nll = [torch.from_numpy(0.5 * (h.mahalanobis + h.fre / noise)) for h in both]
        yield level, _Level(grid, (maps[0], maps[1]), (nll[0], nll[1]))


class _Normalisers:
    """Normalisers of maps: for good pictures and defects alike, from all other folds."""

    def __init__(self, pictures: Pictures):
        self._folds, self._theirs = pictures.folds, torch.from_numpy(pictures.their_folds)
        self._known: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def of(self, level: _Level, how: str) -> tuple[Tensor, Tensor]:
        key = (id(level), how)
        if key not in self._known:
            maps = level.maps[0]
            theirs = torch.empty_like(level.maps[1])
            for fold in np.unique(self._folds):
                theirs[self._theirs == int(fold)] = normaliser_of(maps[self._folds != fold], how)
            self._known[key] = normaliser_without_fold(maps, self._folds, how), theirs
        return self._known[key]


def _score(
    options: Options, known: _Known, normalisers: _Normalisers, pictures: Pictures
) -> tuple[np.ndarray, np.ndarray]:
    layers = []
    for name, rule in options.feature_maps:
        kernel = pictures.kernel(name, rule)
        layers.append(known[name, kernel, float(options.pca_level)])
    of_layers = [normalisers.of(layer, options.normalize) for layer in layers]
    scores = []
    for i in (0, 1):
        nll = torch.stack([layer.nll[i] for layer in layers]).sum(0)
        maps, normalisers_of_half = [layer.maps[i] for layer in layers], [d[i] for d in of_layers]
        score, _ = score_maps(
            maps, normalisers_of_half, nll, [layer.grid for layer in layers], options
        )
        scores.append(score.double().numpy())
    return scores[0], scores[1]
