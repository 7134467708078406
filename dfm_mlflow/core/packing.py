"""Bases in 8 bits: a whole number from -127 to 127 an entry, and a power of two a block.

Powers of two make the rounding exact in both directions: what :func:`on_grid` gives is held by half
precision and by 8 bits alike, so that a model scores the same before it is written and after. The
first directions, along which pictures vary most, keep half precision: there an error of the basis
weighs most. Scores move by 1e-3 at most.
"""

import numpy as np

LEADING = 32  # directions that stay in half precision
BLOCK = 32  # consecutive entries of a column that share a power of two
_LEAST = -24  # exponent of the smallest number of half precision
_AT_ONCE = 64  # columns


def on_grid(basis: np.ndarray) -> np.ndarray:
    """Round a basis to what half precision and, after the leading directions, 8 bits hold.

    Shapes: basis (D, k); gives (D, k) float16.
    """
    result = np.empty(basis.shape, np.float16)
    result[:, :LEADING] = basis[:, :LEADING]
    for start in range(LEADING, basis.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        columns = np.asarray(basis[:, part], np.float32)
        exponents = _spread(_exponents(columns), len(columns))
        result[:, part] = np.ldexp(np.rint(np.ldexp(columns, -exponents)), exponents)
    return result


def pack(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Split what follows the leading directions into whole numbers and exponents.

    Shapes: basis (D, k) float16; gives numbers (D, k - 32) int8; exponents (ceil(D / 32), k - 32)
    int8.
    """
    rest = basis[:, LEADING:]
    if not rest.shape[1]:
        return None
    numbers = np.empty(rest.shape, np.int8)
    exponents = np.empty((n_blocks(len(rest)), rest.shape[1]), np.int8)
    for start in range(0, rest.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        columns = np.asarray(rest[:, part], np.float32)
        exponents[:, part] = _exponents(columns)
        whole = np.ldexp(columns, -_spread(exponents[:, part], len(columns)))
        numbers[:, part] = np.rint(whole)
        if not np.array_equal(numbers[:, part], whole):
            return None
    return numbers, exponents


def n_blocks(n_rows: int) -> int:
    """Blocks of a column of `n_rows` entries."""
    return -(-n_rows // BLOCK)


def unpack(numbers: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Put together what :func:`pack` has split.

    Shapes: numbers (D, m) int8; exponents (ceil(D / 32), m) int8; gives (D, m) float16.
    """
    result = np.empty(numbers.shape, np.float16)
    for start in range(0, numbers.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        spread = _spread(exponents[:, part], len(numbers))
        result[:, part] = np.ldexp(numbers[:, part].astype(np.float32), spread)
    return result


def _exponents(columns: np.ndarray) -> np.ndarray:
    """Smallest exponent e of each block with ``127 * 2^e`` at least its largest entry."""
    padded = np.zeros((n_blocks(len(columns)) * BLOCK, columns.shape[1]), np.float32)
    np.abs(columns, out=padded[: len(columns)])
    largest = padded.reshape(-1, BLOCK, columns.shape[1]).max(axis=1)
    fraction, exponent = np.frexp(largest)
    found = np.where(fraction <= 127 / 128, exponent - 7, exponent - 6)
    least: np.ndarray = np.where(largest > 0, np.maximum(found, _LEAST), _LEAST)
    return least.astype(np.int8)


def _spread(exponents: np.ndarray, n_rows: int) -> np.ndarray:
    return np.repeat(exponents.astype(np.int32), BLOCK, axis=0)[:n_rows]
