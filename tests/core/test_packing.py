import numpy as np
import pytest

from dfm_mlflow.core.packing import LEADING, n_blocks, on_grid, pack, unpack
from dfm_mlflow.core.solvers import fit_subspace


def basis(d=1000, k=80, seed=0):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(d, k)) * np.geomspace(1, 1e-3, d)[:, None])[0]


@pytest.mark.parametrize(("d", "k"), [(1000, 80), (33, 33), (64, 60)])
def test_what_is_on_the_grid_is_packed_without_loss(d, k):
    rounded = on_grid(basis(d, k))
    numbers, exponents = pack(rounded)
    assert numbers.shape == (d, k - LEADING)
    assert exponents.shape == (n_blocks(d), k - LEADING)
    np.testing.assert_array_equal(unpack(numbers, exponents), rounded[:, LEADING:])
    np.testing.assert_array_equal(on_grid(rounded), rounded)


def test_entries_stay_within_a_128th_of_the_largest_of_their_block():
    exact = basis()
    error = np.abs(on_grid(exact) - exact)[:, LEADING:]
    for start in range(0, len(exact), 32):
        block = slice(start, start + 32)
        assert (error[block] <= np.abs(exact[block, LEADING:]).max(0) / 127 + 2.0**-24).all()
    np.testing.assert_allclose(
        on_grid(exact)[:, :LEADING], exact[:, :LEADING], rtol=1e-3, atol=1e-6
    )


def test_other_bases_are_not_packed():
    assert pack(basis().astype(np.float16)) is None
    assert pack(on_grid(basis(100, LEADING))) is None  # nothing follows the leading directions


def test_scores_move_by_a_thousandth_at_most():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(120, 4000)) * np.geomspace(3, 0.1, 120)[:, None]
    x = rng.normal(size=(260, 120)) @ mixing + 2.0 * rng.normal(size=(260, 4000))
    model, new = fit_subspace(x[:200], 0.97), x[200:]
    rounded = fit_subspace(x[:200], 0.97)
    rounded = type(rounded)(
        rounded.mean,
        on_grid(rounded.basis).astype(float),
        rounded.variances,
        rounded.noise_variance,
        rounded.n_samples,
    )
    assert model.n_components > 2 * LEADING
    np.testing.assert_allclose(rounded.fre(new), model.fre(new), rtol=1e-3)
