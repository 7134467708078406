"""A fit in passes over blocks equals the fit of one machine, however the pictures are dealt."""

import numpy as np
import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.detector.class_fit import fit_class_held_out
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.errors import FitError
from dfm_mlflow.spark import class_passes
from dfm_mlflow.spark import layer_passes as passes
from dfm_mlflow.spark.blocks import Block, LocalPasses
from dfm_mlflow.spark.class_passes import fit_class_in_passes

from ..detectors import deal

N = 90
RNG = np.random.default_rng(0)


def features(n=N, seed=0, defect=0.0):
    """Two layers of 96 and 24 features: more and fewer than pictures."""
    rng = np.random.default_rng(seed)
    found = []
    for shape, hidden in (((6, 4, 4), 5), ((6, 2, 2), 4)):
        mixing = np.random.default_rng(hidden).normal(size=(hidden, int(np.prod(shape))))
        spread = np.geomspace(3, 0.5, hidden)
        rows = 2 + (rng.normal(size=(n, hidden)) * spread) @ mixing
        rows += 0.1 * rng.normal(size=rows.shape) + defect * rng.normal(size=rows.shape)
        found.append(torch.from_numpy(rows.reshape(n, *shape).astype(np.float32)))
    return found


def grids(roi=None, kinds="picture"):
    shapes = [(6, 4, 4), (6, 2, 2)]
    cells = [np.ones(s[1:], bool) for s in shapes]
    if roi:
        cells[0][0], cells[1][0] = False, False
    return [Grid(s, c, rows_are=kinds) for s, c in zip(shapes, cells, strict=True)]


def options(**given):
    return Options.parse({"pca_level": "0.9", **given}).resolve()


def dealt(found, size, unread=()):
    """Blocks of a listing in which some pictures could not be read."""
    n = len(found[0]) + len(unread)
    index = np.array([i for i in range(n) if i not in unread])
    return (
        LocalPasses(
            [
                Block(index[i : i + size], [f[i : i + size].numpy() for f in found])
                for i in range(0, len(index), size)
            ]
        ),
        index,
        n,
    )


def both(size, *, groups=None, roi=None, unread=(), kinds="picture", **given):
    chosen, where, found = options(**given), grids(roi, kinds), features()
    copies = [features(seed=9)] if chosen.augment == "flips" else []
    mine = deal(N, groups, chosen.seed)
    everything = [torch.cat(parts) for parts in zip(found, *copies, strict=True)]
    here, seen = fit_class_held_out("a", everything, mine, where, chosen)
    blocks, index, n = dealt(found, size, unread)
    for more in copies:
        beside, _, _ = dealt(more, size, unread)
        blocks = blocks.join(beside, with_copies)
    folds = np.full(n, -1)
    folds[index] = mine.folds
    there, held_out = fit_class_in_passes("a", blocks, folds, mine, where, chosen)
    np.testing.assert_allclose(held_out.score, seen.score, rtol=1e-3)
    np.testing.assert_allclose(held_out.p_value, seen.p_value, atol=1e-9)
    assert 0 < len(held_out.maps) <= class_passes.MOST_MAPS
    for i, values in held_out.maps.items():
        torch.testing.assert_close(values, seen.maps[i], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(held_out.sketches, seen.sketches)
    return here, there, where, chosen


def with_copies(block, copies):
    features = [np.concatenate(p) for p in zip(block.features, copies.features, strict=True)]
    return Block(block.index, features)


def assert_alike(pair, rel):
    here, there, where, chosen = pair
    cpu = torch.device("cpu")
    for new in (features(20, 7), features(20, 8, defect=1.0)):
        a, b = (score_class(m.on(cpu), new, where, chosen) for m in (here, there))
        for name in ("score", "fre", "nll", "maps"):
            x, y = getattr(a, name), getattr(b, name)
            torch.testing.assert_close(x, y, rtol=rel, atol=rel * float(x.abs().mean()))
        p, q = (m.calibration.p_value(s.score.numpy()) for m, s in ((here, a), (there, b)))
        np.testing.assert_allclose(p, q, atol=1e-9)
    np.testing.assert_allclose(there.calibration.scores, here.calibration.scores, rtol=rel)
    assert there.calibration.n_folds == here.calibration.n_folds
    assert there.map_scale == pytest.approx(here.map_scale, rel=rel)
    for mine, theirs in zip(here.layers, there.layers, strict=True):
        np.testing.assert_allclose(
            theirs.leading_coordinates, mine.leading_coordinates, atol=rel * 100
        )
        assert theirs.subspace.n_samples == mine.subspace.n_samples


@pytest.mark.parametrize("size", [1, 17, N])
def test_rows_and_moments_equal_one_machine(size):
    assert_alike(both(size), 1e-6)


@pytest.mark.parametrize(
    "given",
    [
        {"score": "nll"},
        {"aggregate": "max", "normalize": "global"},
        {"aggregate": "sum", "normalize": "none", "tail": "gpd"},
        {"roi": True},
        {"groups": [str(i // 3) for i in range(N)]},
        {"unread": (0, 40, 41, 92)},
        {"augment": "flips"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_options_groups_and_unreadable_pictures_too(given):
    assert_alike(both(16, **given), 1e-6)


@pytest.fixture
def tiny(monkeypatch):
    """What is large for this test: subspace iteration from 20 rows and features on."""
    monkeypatch.setattr(passes, "LARGE", 20)
    monkeypatch.setattr(passes, "MAX_FEATURES", 20)
    # of many rows no engine estimates how much lower they would score under the final model
    monkeypatch.setattr("dfm_mlflow.core.crossfit.MOST_REFIT", 20)


@pytest.mark.parametrize("augment", ["none", "flips"])
def test_iteration_equals_the_exact_solvers(tiny, augment):
    assert_alike(both(17, augment=augment), 1e-4)


def test_all_iterations_need_not_fit_into_one_pass(tiny, monkeypatch):
    monkeypatch.setattr(passes, "BUDGET", 10_000)
    assert_alike(both(17), 1e-4)


class GivesWay(passes.SubspaceIteration):
    def advance(self, product):
        raise passes.TooManyComponents("more than half")


def test_where_iteration_gives_way_the_exact_solvers_do_it(tiny, monkeypatch):
    monkeypatch.setattr(passes, "SubspaceIteration", GivesWay)
    assert_alike(both(17), 1e-6)
    monkeypatch.setattr(passes, "MOST_ROWS", 0)
    # moments of more features than pictures; here it is the Gram matrix that is in single precision
    assert_alike(both(17), 1e-5)
    monkeypatch.setattr(passes, "MOST_EXACT", 10)
    with pytest.raises(FitError, match="smaller pca_level or more pooling"):
        both(17)


def test_what_comes_back_does_not_grow_with_the_pictures(monkeypatch):
    """Sums have one size; per picture come two kinds of numbers, never its features or maps."""

    class Measured(LocalPasses):
        def total(self, work, merge):
            result = super().total(work, merge)
            totals.append(_size(result))
            return result

        def each(self, work, *, large=False):
            results = list(super().each(work))
            each.append(_size(results) / sum(len(b.index) for b in self.blocks))
            return results

        def derive(self, work):
            return Measured(super().derive(work).blocks)

        def join(self, other, merge):
            return Measured(super().join(other, merge).blocks)

    monkeypatch.setattr(class_passes, "MOST", 199)  # more are not looked through for duplicates
    seen = []
    for n in (200, 400):
        totals, each = [], []
        blocks, _, _ = dealt(features(n), 50)
        mine = deal(n)
        fit_class_in_passes("a", Measured(blocks.blocks), mine.folds, mine, grids(), options())
        seen.append((totals, max(each)))
    assert sorted(seen[0][0]) == sorted(seen[1][0])  # layers are fitted side by side
    assert max(s[1] for s in seen) <= 8 + 2 * 4 * 10  # a score, ten coordinates a layer


def _size(value):
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes
    if hasattr(value, "scatter"):
        return value.scatter.nbytes + value.mean.nbytes
    if hasattr(value, "maps"):
        return _size(value.maps) + value.fre.nbytes
    return 8


def test_values_that_are_not_finite_are_refused():
    for j in range(2):
        found = features()
        found[j][5, 0, 0, 0] = float("nan")
        mine = deal(N)
        with pytest.raises(FitError, match="NaN or infinite"):
            fit_class_in_passes("a", dealt(found, 16)[0], mine.folds, mine, grids(), options())


@pytest.mark.parametrize("size", [1, 17, N])
def test_subspaces_over_cells_take_one_pass_a_layer(size, monkeypatch):
    seen, total = [], LocalPasses.total
    monkeypatch.setattr(LocalPasses, "total", lambda s, w, m: (seen.append(s), total(s, w, m))[1])
    assert_alike(both(size, kinds="cell"), 1e-5)
    assert sum(isinstance(p.blocks[0], Block) for p in seen) == 2  # of two layers


@pytest.mark.parametrize(
    "given",
    [
        {"score": "nll"},
        {"roi": True, "blur": "3"},
        {"groups": [str(i // 3) for i in range(N)]},
        {"unread": (0, 40, 41, 92)},
        {"augment": "flips", "normalize": "blend"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_options_over_cells_too(given):
    assert_alike(both(16, kinds="cell", **given), 1e-5)


def test_both_kinds_of_rows_are_fused_alike(monkeypatch):
    kinds = [
        Grid(g.shape, g.cells, rows_are=kind)
        for g, kind in zip(grids(), ("cell", "picture"), strict=True)
    ]
    monkeypatch.setitem(globals(), "grids", lambda roi, kinds_: kinds)
    assert_alike(both(16, aggregate="top:0.2", normalize="global"), 1e-5)
