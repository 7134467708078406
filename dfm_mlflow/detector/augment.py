"""Whether turned or mirrored copies of good pictures teach what other good pictures would.

The held-out residual of untouched pictures falls with every picture that joins the fit. Copies of a
few pictures are compared with as many other good pictures: what share of their fall do they bring?
Parts that lie freely give nearly all of it; where a part always lies alike its copies are foreign,
and bring nothing or harm. No label is asked for.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.cells import crossfit_cells
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.detector.grid import Grid, grids_of
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.copies import COPIES
from dfm_mlflow.network.depths import extract_settled
from dfm_mlflow.network.extraction import Extraction
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source

# Pictures of a class whose copies are tried: two passes of the network for each, at most a quarter
# of those of an extraction. Of fewer than FEWEST a mean says nothing.
MOST, SHARE, FEWEST = 40, 8, 6
# What a copy must be worth, in other good pictures, and how surely: standard errors of its mean.
WORTH, SURELY = 0.25, 2.0
TRIED = ("rotations", "flips")
# Three turns take twice the passes of one mirrored copy: they are for parts that lie freely, of
# which a turn teaches about what a mirrored copy does, this share of it at least.
FREELY = 0.8
# Fewer pictures of a class gain most, by all copies, and eight passes for each cost little where
# all inputs together have no more pixels than these: less is asked of a copy. Cells as rows are
# many even then.
FEW, WORTH_OF_FEW, PIXELS_OF_FEW = 100, 0.1, 100 * 512**2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worth:
    """What one copy teaches, in units of what one other good picture teaches."""

    mean: float  # 1 where a copy is as good as another picture, below 0 where copies harm
    error: float  # standard error of the mean
    n: int  # pictures that were copied

    def kept(self, least: float = WORTH) -> bool:
        """Whether a copy is surely worth more than the `least` that is asked."""
        return self.mean - SURELY * self.error > least


@dataclass(frozen=True)
class Trial:
    """What was decided of copies, and why."""

    augment: str  # option that is to be followed: ``all``, ``rotations``, ``flips`` or ``none``
    # Of each kind of copies that was tried, by class.
    worth: dict[str, dict[str, Worth]] = field(default_factory=dict)
    sentence: str = ""


def worth_of_copies(
    own: Sequence[np.ndarray],
    copies: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    level: float | Sequence[float],
    seed: int = 42,
) -> Worth:
    """Hold copies of pictures against as many other pictures.

    Shapes: own, copies, others (m, D) or (m, P, D).
    """
    m = len(own[0])
    folds = assign_folds(m, seed=seed)
    fall = np.zeros((2, m))  # of copies, of others
    levels = [level] * len(own) if isinstance(level, float) else level
    for share, x, *more in zip(levels, own, copies, others, strict=True):
        alone = _held_out_fre(x, folds, share, m)
        for i, rows in enumerate(more):
            beside = _held_out_fre(np.concatenate([x, rows]), np.tile(folds, 2), share, m)
            with np.errstate(divide="ignore", invalid="ignore"):
                fall[i] += np.nan_to_num(np.log(alone / beside), posinf=0, neginf=0)
    reference = float(fall[1].mean())
    if not reference > 0:  # nothing is left to learn: more of anything would not help
        return Worth(0.0, 0.0, m)
    mean = float(fall[0].mean()) / reference
    error = float((fall[0] - mean * fall[1]).std(ddof=1)) / math.sqrt(m) / reference
    return Worth(mean, error, m)


def _held_out_fre(x: np.ndarray, folds: np.ndarray, level: float, own: int) -> np.ndarray:
    if x.ndim == 2:
        return crossfit(x, folds, level, own=own).fre
    held_out = crossfit_cells(lambda: [x], folds, level, own=own)[1]
    fre: np.ndarray = held_out.maps.sum(axis=1, dtype=np.float64)
    return fre


def extract_to_fit(
    extractor: Extractor,
    sources: Sequence[Source],
    labels: Sequence[str],
    options: Options,
    *,
    progress: str | None = None,
) -> tuple[Extractor, Extraction, Trial]:
    """Extract good pictures, and the copies of them that the fit is to see."""
    given = "none" if options.augment == "auto" else options.augment
    known, extraction = extract_settled(
        extractor,
        sources,
        options.stated_bits,
        copies=COPIES[given],
        hold=options.augment == "auto",
        progress=progress,
    )
    if options.augment != "auto":
        return known, extraction, Trial(options.augment)
    trial = try_copies(known, sources, labels, extraction, options)
    if trial.augment != "none":
        known.take_back(sources, extraction)
        del extraction  # the table of all copies has room for it then
        copies = COPIES[trial.augment]
        extraction = known.extract(sources, copies=copies, progress=f"{trial.augment} of them")
    known.release()
    return known, extraction, trial


def try_some(
    extractor: Extractor, sources: Sequence[Source], labels: Sequence[str], options: Options
) -> Trial:
    """Decide on a few pictures, where the features of all are elsewhere."""
    if options.augment != "auto":
        return Trial(options.augment)
    chosen: list[int] = []
    for name in dict.fromkeys(labels):
        mine = [i for i, label in enumerate(labels) if label == name]
        chosen += mine[:: max(1, len(mine) // (2 * MOST))][: 2 * MOST]
    some = [sources[i] for i in chosen]
    named = [labels[i] for i in chosen]
    return try_copies(extractor, some, named, extractor.extract(some), options, everything=labels)


def try_copies(
    extractor: Extractor,
    sources: Sequence[Source],
    labels: Sequence[str],
    extraction: Extraction,
    options: Options,
    *,
    everything: Sequence[str] | None = None,
) -> Trial:
    """Decide which copies are worth their cost in every class.

    `everything` names the class of each picture of the set, where these are some of them.
    """
    rows: dict[str, list[int]] = {}
    for row, i in sorted(
        enumerate(extraction.kept), key=lambda pair: extraction.digests.get(pair[1], "")
    ):
        rows.setdefault(labels[i], []).append(row)
    sizes = list(Counter(everything or [labels[i] for i in extraction.kept]).values())
    trial = _decide(rows, sizes, extractor, sources, extraction, options)
    _logger.info(trial.sentence)
    return trial


def _decide(
    rows: Mapping[str, Sequence[int]],
    sizes: Sequence[int],
    extractor: Extractor,
    sources: Sequence[Source],
    extraction: Extraction,
    options: Options,
) -> Trial:
    fewest = min((len(r) for r in rows.values()), default=0)
    if fewest < 2 * FEWEST:
        return Trial(
            "none",
            sentence=f"augment=auto takes none: {fewest} good pictures are too few to measure "
            f"whether copies help ({2 * FEWEST} are needed). Where parts lie freely, give "
            "augment=all, or rotations where a mirrored part is another part: few pictures gain "
            "most.",
        )
    shapes = [f.shape[1:] for f in extraction.features]
    grids = grids_of(shapes, extractor.pixels.roi_cells, options.rows_are)
    worth = {
        kind: {
            name: _worth(kind, mine, extractor, sources, extraction, grids, options)
            for name, mine in rows.items()
        }
        for kind in TRIED
    }
    pixels = math.prod(extractor.size) * sum(sizes)
    few = min(sizes) < FEW and pixels <= PIXELS_OF_FEW and not any(g.of_cells for g in grids)
    augment = chosen(worth, few)
    return Trial(augment, worth, _sentence(augment, worth, few))


def chosen(worth: Mapping[str, Mapping[str, Worth]], few: bool) -> str:
    """Choose the copies that every class is surely to gain by, by what each kind is worth.

    All are taken of `few` pictures, where turned and mirrored ones teach.
    """
    turns, flips = worth["rotations"], worth["flips"]
    least = WORTH_OF_FEW if few else WORTH
    turned, mirrored = (all(w.kept(least) for w in kind.values()) for kind in (turns, flips))
    if turned and mirrored and few:
        return "all"
    freely = all(turns[name].mean >= FREELY * w.mean for name, w in flips.items())
    if turned and (freely or not mirrored):
        return "rotations"
    return "flips" if mirrored else "none"


def _worth(
    kind: str,
    mine: Sequence[int],
    extractor: Extractor,
    sources: Sequence[Source],
    extraction: Extraction,
    grids: Sequence[Grid],
    options: Options,
) -> Worth:
    """Try one copy of each of the first pictures of a class: of all copies of a kind in turn."""
    m = min(MOST, max(len(mine) // SHARE, min(FEWEST + 2, len(mine) // 2)))
    own, others = list(mine[:m]), list(mine[m : 2 * m])
    copies = COPIES[kind][1:]
    turned: list[list[np.ndarray]] = [[] for _ in grids]
    order: list[int] = []
    for j, one in enumerate(copies):
        part = own[j :: len(copies)]
        found = extractor.extract([sources[extraction.kept[r]] for r in part], copies=(one,))
        order += [part[k] for k in found.kept]
        for rows, more in zip(turned, _rows(grids, found.features), strict=True):
            rows.append(more)
    known = [_rows(grids, [f[r] for f in extraction.features]) for r in (order, others)]
    levels = options.levels_of(len(grids))
    try:
        return worth_of_copies(
            known[0], [np.concatenate(t) for t in turned], known[1], levels, options.seed
        )
    except FitError:  # equal pictures, which the fit itself reports
        return Worth(0.0, 0.0, m)


def _rows(grids: Sequence[Grid], features: Sequence[Tensor]) -> list[np.ndarray]:
    rows = [g.rows(f).cpu().numpy() for g, f in zip(grids, features, strict=True)]
    return [
        x.reshape(-1, g.n_cells, x.shape[1]) if g.of_cells else x
        for x, g in zip(rows, grids, strict=True)
    ]


def _sentence(augment: str, worth: Mapping[str, Mapping[str, Worth]], few: bool) -> str:
    said = []
    for kind, by_class in worth.items():
        least = min(by_class.values(), key=lambda w: w.mean - SURELY * w.error)
        said.append(f"{kind} {least.mean:.2f} +- {least.error:.2f}")
    tried = next(iter(next(iter(worth.values())).values())).n
    asked = (
        f"of fewer than {FEW} pictures {WORTH_OF_FEW} is required"
        if few
        else f"{WORTH} is required, and of rotations {FREELY:.0%} of what flips are worth"
    )
    return (
        f"augment=auto takes {augment}: worth of one copy as a share of one more good picture: "
        f"{', '.join(said)}; {asked}, beyond twice the error (tried on {tried} pictures)."
    )
